"""The places of a machine, as states of makina-states' projects ask for them."""

def settings(*args, **kwargs):
    """The directories of the machine and of its projects."""
    cfg = __opts__["ms_project"]
    return {
        "root_dir": "/",
        "prefix": "/srv",
        "srv_dir": "/srv",
        "home_dir": "/home",
        "users_home_dir": "/home",
        "root_home_dir": "/root",
        "conf_dir": "/etc",
        "initd_dir": "/etc/init.d",
        "bin_dir": "/usr/bin",
        "sbin_dir": "/usr/sbin",
        "lib_dir": "/usr/lib",
        "tmp_dir": "/tmp",
        "var_dir": "/var",
        "var_lib_dir": "/var/lib",
        "var_log_dir": "/var/log",
        "var_run_dir": "/var/run",
        "var_cache_dir": "/var/cache",
        "var_spool_dir": "/var/spool",
        "var_tmp_dir": "/var/tmp",
        "projects_dir": cfg["projects_dir"],
        "resetperms": __opts__["mc_project_order"]["resetperms"],
    }
