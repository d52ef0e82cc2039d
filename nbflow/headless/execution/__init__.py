"""One execution of a notebook by papermill: which run, the kernel, the cells, the books."""
