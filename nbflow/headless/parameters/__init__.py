"""Parameters in: files, axes and Python objects become rows, and bad ones a sentence with its place."""
