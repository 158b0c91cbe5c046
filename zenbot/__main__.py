"""`python -m zenbot` is the command `zenbot`."""
from zenbot.cli import main

main()
