"""The user and the group of a project, as `fixperms` states ask for them."""


def settings(*args, **kwargs):
    """Both, by name."""
    cfg = __opts__["ms_project"]
    return {"user": cfg["user"], "group": cfg["group"]}
