"""Arrays, masks and colours to pictures. No Streamlit, no models."""
