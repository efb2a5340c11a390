"""The daemon: the only package that joins the remote and the store."""
