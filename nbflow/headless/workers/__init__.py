"""Where the notebooks of a batch are executed: fresh processes of this machine, a Dask cluster."""
