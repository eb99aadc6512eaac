"""The environment that a project is deployed for."""


def settings(*args, **kwargs):
    """The environment's name, and which one it is."""
    env = __opts__["ms_project"]["default_env"]
    return {
        "env": env,
        "default_env": env,
        "is_dev": env == "dev",
        "is_staging": env in ("staging", "preprod", "test", "qa"),
        "is_prod": env == "prod",
    }
