"""`python -m twolane`."""

from twolane.cli import main

main()
