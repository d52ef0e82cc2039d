"""Views in a notebook: the dashboard, machines and gates, as widgets over plain ES modules in `static/`."""
