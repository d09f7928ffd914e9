"""What tests/stress/fuzz.py and tests/test_hostile.py share: readers, their inputs, and what counts as a failure."""
