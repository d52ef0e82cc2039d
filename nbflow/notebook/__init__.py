"""The IPython side: magics and extension, cell analysis, capture and replay of display and ambient state.

`extension` puts everything into a shell. Nothing here is public but the magics
and `%config NbFlow`; the layers above use `plan`, `cells` and `identity`.
"""
