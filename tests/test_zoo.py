def test_the_zoo_is_what_configs_and_results_say(run):
    assert run("tools/zoo.py", "--check") == 0
