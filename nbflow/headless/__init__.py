"""Notebooks without a person: papermill's engine, one run by the API, thousands in a batch, a Dask cluster."""
