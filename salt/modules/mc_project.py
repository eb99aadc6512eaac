"""Runs the states of a project, and answers what they ask about it.

mc_project calls ``salt-call --local mc_project.run`` once for all states of a stage. Lines that begin with the mark of the
order are for mc_project, everything else is output of the step.
"""

import json
import logging
import os
import re
import time
import traceback

import yaml

RETCODE = 3

# What stands in for the parts of makina-states that projects ask for, by a word of the name; the last one is for the rest.
STAND_INS = (
    ("nginx", "pkg.installed nginx, file.managed for the site, service.running with watch and reload"),
    ("apache", "pkg.installed apache2, apache_site.enabled, service.running with watch and reload"),
    ("php", "pkg.installed php-fpm, file.managed for the pool, service.running with watch"),
    ("circus", "`services:` of mc_project.yaml, or file.managed of a systemd unit and service.running"),
    ("supervisor", "`services:` of mc_project.yaml, or file.managed of a systemd unit and service.running"),
    ("pgsql", "postgres_user.present and postgres_database.present of Salt"),
    ("postgres", "postgres_user.present and postgres_database.present of Salt"),
    ("mysql", "mysql_user.present, mysql_database.present and mysql_grants.present of Salt"),
    ("mongo", "mongodb_user.present and mongodb_database.present of Salt"),
    ("rabbit", "rabbitmq_vhost.present and rabbitmq_user.present of Salt"),
    ("nodejs", "pkg.installed nodejs and npm.bootstrap"),
    ("rvm", "pkg.installed ruby and gem.installed"),
    ("ssl", "file.managed for key and certificate, or acme.cert"),
    ("certs", "file.managed for key and certificate, or acme.cert"),
    ("firewall", "nftables.append or iptables.append of Salt"),
    ("localsettings", "pkg.installed and file.managed"),
    ("", "Salt's own states: pkg, file, user, service, cmd"),
)


class _Progress(logging.Handler):
    """Prints which state begins, from what Salt itself logs about it."""

    def emit(self, record):
        if record.msg == "Executing state %s.%s for [%s]" and len(record.args or ()) == 3:
            state, function, name = record.args
            print("{}.{}: {}".format(state, function, str(name).strip().replace("\n", "; ")), flush=True)


def get_configuration(name=None, *args, **kwargs):
    """The configuration of the project, as its states find it in ``opts['ms_project']``."""
    cfg = __opts__["ms_project"]
    if name not in (None, cfg["name"]):
        raise ValueError("mc_project knows {} here, and not {}".format(cfg["name"], name))
    return cfg


get_project = get_configuration
get_common = get_configuration


def secret(name):
    """A secret of the pillar, from the files that mc_project gives to a deployment."""
    directory = os.environ.get("MC_SECRETS_DIR")
    path = os.path.join(directory or "/nonexistent", name)
    if not directory or "/" in name or not os.path.isfile(path):
        raise ValueError("the pillar names no secret `{}`".format(name))
    with open(path) as found:
        return found.read()


def run():
    """Runs the states of the order one after the other until one fails, then those that may fail."""
    order = __opts__["mc_project_order"]
    logger = logging.getLogger("salt.state")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Progress())
    done = True
    for sls in order["states"]:
        done = _run(order, sls, False)
        if not done:
            break
    for sls in order["lenient"] if done else ():
        _run(order, sls, True)
    __context__["retcode"] = 0 if done else RETCODE
    _tell(order, "done", {})
    return done


def _run(order, sls, lenient):
    _tell(order, "begin", {"sls": sls, "lenient": lenient})
    begin = time.monotonic()
    name = "makina-projects.{}.{}".format(__opts__["ms_project"]["name"], sls)
    end = {"sls": sls, "lenient": lenient, "reason": None, "hints": [], "states": 0, "changed": 0}
    try:
        result = __salt__["state.sls"](name, concurrent=True)
        if isinstance(result, dict):
            _judge(result, end)
        else:
            texts = result if isinstance(result, list) else [result]
            _refuse([str(text) for text in texts], end)
    except Exception as error:  # pylint: disable=broad-except
        print(traceback.format_exc(), flush=True)
        end["reason"] = "{}: {}".format(type(error).__name__, error)
    end["ms"] = int((time.monotonic() - begin) * 1000)
    # A failure of one SLS must not be the failure of the next.
    __context__["retcode"] = 0
    _tell(order, "end", end)
    return end["reason"] is None


def _judge(result, end):
    """Reads what became of each state."""
    states = [(key, state) for key, state in result.items() if isinstance(state, dict)]
    states.sort(key=lambda pair: pair[1].get("__run_num__", 0))
    if len(states) != len(result):
        return _refuse([str(result)], end)
    if all(key.startswith("no_|-states") for key, _ in states):
        print("warning: {} has no states".format(end["sls"]), flush=True)
        return None
    end["states"] = len(states)
    failed = []
    for key, state in states:
        end["changed"] += bool(state.get("changes")) and state.get("result") is not False
        _output(state)
        if state.get("result") is False:
            failed.append((key, state))
    own = [pair for pair in failed if not _is_of_a_requisite(pair[1])]
    for key, state in failed:
        print("{} {}: {}".format("failed:" if (key, state) in own else "not run:", _label(key, state), _comment(state)), flush=True)
    if failed:
        key, state = (own or failed)[0]
        code = (state.get("changes") or {}).get("retcode")
        why = "exit {}".format(code) if code else _comment(state).splitlines()[0]
        more = " (and {} more)".format(len(own) - 1) if len(own) > 1 else ""
        end["reason"] = "{}: {}{}".format(_label(key, state), why, more)
        _explain(_comment(state), end)
    return None


def _is_of_a_requisite(state):
    return state.get("__state_ran__") is False and "requisite" in _comment(state)


def _label(key, state):
    parts = key.split("_|-")
    identity = state.get("__id__") or (parts[1] if len(parts) > 1 else key)
    return "{}.{} `{}`".format(parts[0], parts[-1], identity)


def _comment(state):
    comment = state.get("comment") or ""
    comment = "\n".join(str(line) for line in comment) if isinstance(comment, list) else str(comment)
    return comment.strip() or "it says no more"


def _output(state):
    """What a program of a state printed."""
    changes = state.get("changes")
    for stream in ("stdout", "stderr"):
        text = changes.get(stream) if isinstance(changes, dict) else None
        if isinstance(text, str) and text.strip():
            print("\n".join("  " + line for line in text.splitlines()), flush=True)


def _refuse(texts, end):
    """What could not be rendered or compiled: the lines before Python's own."""
    shown = []
    for text in texts:
        shown.extend(text.split("\nTraceback", 1)[0].splitlines())
    where = _where(end["sls"]) if "; line " not in "\n".join(shown) else None
    print("\n".join(shown + (where or [])), flush=True)
    first = next((line.strip() for line in shown if line.strip()), "Salt gave no reason")
    first = re.sub(r"^Rendering SLS '[^']*' failed: ", "cannot be rendered: ", first)
    end["reason"] = "{}; {}".format(first, where[0]) if where else first
    _explain("\n".join(texts), end)


def _where(sls):
    """The line of the rendered file that is no YAML, which Salt does not tell; None if there is none."""
    path = "salt://makina-projects/{}/{}.sls".format(__opts__["ms_project"]["name"], sls)
    try:
        text = __salt__["slsutil.renderer"](path, default_renderer="jinja")
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        number = error.problem_mark.line if error.problem_mark else 0
        lines = text.splitlines()[max(0, number - 2) : number + 1]
        numbered = ["  {:>4} | {}".format(number + 2 - len(lines) + at, line) for at, line in enumerate(lines)]
        return ["line {} of the rendered file".format(number + 1)] + numbered
    except Exception:  # pylint: disable=broad-except
        # It was told already that it cannot be rendered.
        return None
    return None


def _explain(text, end):
    """Says which part of makina-states is missing, and what stands in for it."""
    patterns = (
        (r"has no attribute '(mc_\w+\.\w+)'", "the function {} of makina-states"),
        (r"Specified SLS '?(makina-states\.[\w.-]+)", "the file of states {} of makina-states"),
        (r"(makina-states/[\w./-]+)", "the file {} of makina-states"),
        (r"State '(mc_\w+\.\w+)' was not found", "the state {} of makina-states"),
    )
    if "preexec_fn" in text:
        # What Salt says when it may not become the user of a state.
        end["hints"].append(
            "a state has a `user:` that {} cannot become; `trust: root` in node.yaml lets root run the states".format(
                __opts__["user"]
            )
        )
        return
    for pattern, words in patterns:
        found = re.search(pattern, text)
        if found:
            name = found.group(1)
            stand_in = next(said for word, said in STAND_INS if word in name)
            end["reason"] = "{} is not here: mc_project has no makina-states".format(words.format(name))
            end["hints"].append("what stands in for it: " + stand_in)
            return


def _tell(order, event, fields):
    print("{}{} {}".format(order["mark"], event, json.dumps(fields)), flush=True)
