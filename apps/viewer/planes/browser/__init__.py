"""Scripts and style of the planes: joined to one module by component.py, and run by the browser."""
