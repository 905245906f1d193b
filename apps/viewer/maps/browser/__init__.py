"""Scripts and style of the map: joined to one module by component.py, and run by the browser."""
