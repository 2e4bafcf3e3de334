"""What `python -m tfgpt.doctor` measures before a long run, and what it says about it."""
