"""What `benchmarks/train.py` is made of: the work that is compared, and those who do it."""
