"""Coverage-guided fuzzing: ``python3 noxfile.py fuzz -- [SECONDS] [TARGET ...]``.

Each target is a module with a function ``check`` that takes any bytes, makes a case of them, and
raises for what must not be. It is called by the fuzzer, with bytes that it makes up, and by
tests/test_fuzzing.py, with those that the fuzzer has kept.
"""
