"""The explorer's pages; each is a script that Streamlit runs when it is opened."""
