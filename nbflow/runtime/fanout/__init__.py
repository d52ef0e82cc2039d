"""`nbflow.map`: items as steps, worked off by threads, tasks or executors."""
