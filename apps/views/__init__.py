"""The explorer's pages; each is a script that Streamlit runs when it is opened.

Not called `pages`: Streamlit would run a folder of that name by itself where the first address
asked of a fresh server is a page's own, without what all pages share.
"""
