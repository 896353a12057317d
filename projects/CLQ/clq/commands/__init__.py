"""The commands of ``clq``, each a module with a ``main(argv)`` that returns the exit status."""
