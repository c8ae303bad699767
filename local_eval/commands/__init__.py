"""The commands of `python -m local_eval`, one file each: its options, and what it does with them."""
