"""Waiting inside a run, and the words from outside that end it: sleep, signals, cancel."""
