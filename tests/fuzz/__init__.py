"""Fuzzing: `make fuzz`; a short form in tests/test_fuzz.py."""
