"""The same workloads by tools that one might use instead of nbflow. Start with `run.py`."""
