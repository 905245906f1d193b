"""The viewer: pages (Streamlit), session (what one person has open) and render (arrays to pictures)."""
