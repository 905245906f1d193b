"""The component for volumes and pictures: linked planes, drawn in the browser."""
