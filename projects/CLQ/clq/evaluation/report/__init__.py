"""A report on the evaluation of one or several runs: what the scores mean, which errors are made, what could be won."""
