"""Faults at random points of real commands: what is lost, what is made twice, what the user sees. docs/faults.md has the results."""
