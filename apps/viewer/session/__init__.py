"""What one person has open: image, model, result. Nothing here knows of Streamlit."""
