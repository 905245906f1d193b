"""The component for scenes: a map of tiles, drawn in the browser."""
