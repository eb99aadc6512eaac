"""The helpers that nearly every project of makina-states calls."""

import collections.abc
import copy
import json
import secrets
import string

import yaml

_NOTHING = object()
# The longest text that names in braces may make.
LONGEST = 1 << 20


def json_dump(data, pretty=False, *args, **kwargs):
    """JSON text."""
    return json.dumps(data, indent=4 if pretty else None, separators=(",", ": ") if pretty else None, default=str)


def json_load(data, *args, **kwargs):
    """What a JSON text says."""
    return json.loads(data)


def yaml_dump(data, flow=False, *args, **kwargs):
    """YAML text."""
    return yaml.safe_dump(json.loads(json.dumps(data, default=str)), default_flow_style=flow)


def yaml_load(data, *args, **kwargs):
    """What a YAML text says."""
    return yaml.safe_load(data)


cyaml_dump = old_safe_yaml_dump = iyaml_dump = yaml_dump
cyaml_load = old_safe_yaml_load = yaml_load


def dictupdate(lower, higher):
    """Merges mappings deeply into the first one; everything else is replaced."""
    for which, value in (("first", lower), ("second", higher)):
        if not isinstance(value, collections.abc.Mapping):
            raise TypeError("the {} argument of dictupdate is no mapping: {!r}".format(which, value))
    for key, value in higher.items():
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            dictupdate(lower[key], value)
        else:
            lower[key] = value
    return lower


def copy_dictupdate(lower, higher):
    """As dictupdate, and changes neither of them."""
    return dictupdate(copy.deepcopy(lower), copy.deepcopy(higher))


def get(key, default="", *args, **kwargs):
    """A value of the options, the pillar or the grains: the key as it is, else its way with colons or dots."""
    sources = (__opts__, __pillar__, __grains__)
    for source in sources:
        if key in source:
            return source[key]
    for source in sources[1:]:
        for delimiter in (":", "."):
            value = source
            for part in key.split(delimiter):
                value = value.get(part, _NOTHING) if isinstance(value, collections.abc.Mapping) else _NOTHING
            if value is not _NOTHING:
                return value
    return default


def defaults(prefix, values, ignored_keys=(), overridden=None, noresolve=False, *args, **kwargs):
    """Values with what the pillar has for them below the prefix: mappings deeply, lists longer, `KEY-overrides` whole."""
    made = {}
    for key, value in values.items():
        below = "{}.{}".format(prefix, key)
        whole = get(below + "-overrides", _NOTHING)
        found = get(below, _NOTHING) if key not in ignored_keys else _NOTHING
        if whole is not _NOTHING:
            made[key] = whole
        elif isinstance(value, dict):
            base = copy_dictupdate(value, dict(found)) if isinstance(found, collections.abc.Mapping) else value
            made[key] = defaults(below, base, noresolve=True)
        elif isinstance(value, list) and isinstance(found, list):
            made[key] = value + [item for item in found if item not in value]
        else:
            made[key] = value if found is _NOTHING else found
    return made if noresolve else format_resolve(made)


def format_resolve(value, original=None, *args, **kwargs):
    """Resolves ``{name}`` in texts against the mapping until nothing changes."""
    for _ in range(24):
        before = copy.deepcopy(value)
        value = _resolved(value, original if original is not None else value)
        if value == before:
            break
    return value


def _resolved(value, names):
    if isinstance(value, dict):
        return {key: _resolved(inner, names) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolved(inner, names) for inner in value]
    if not isinstance(value, str) or "{" not in value or not isinstance(names, dict):
        return value
    text = value
    for key, found in names.items():
        name = "{%s}" % key
        if text == name and not isinstance(found, str):
            return found
        if name in text and found != value:
            text = text.replace(name, str(found))
            if len(text) > LONGEST:
                raise ValueError("`{}` grows without end: its names in braces lead back to themselves".format(key))
    return text


def generate_stored_password(key, length=None, *args, **kwargs):
    """A password that was made up when the configuration was read, and is kept by mc_project."""
    known = __opts__["mc_project_order"]["passwords"]
    if key not in known:
        call = "{{ salt['mc_utils.generate_stored_password']('%s', %s) }}" % (key, length or 16)
        raise ValueError("no password `{}` is kept: ask for it in PILLAR.sample or pillar: {}".format(key, call))
    return known[key]


def generate_password(length=None, *args, **kwargs):
    """A password that nobody keeps."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(length or 16))


def uniquify(sequence, *args, **kwargs):
    """The items, each once, in their order."""
    kept = []
    for item in sequence:
        if item not in kept:
            kept.append(item)
    return kept


def magicstring(value, *args, **kwargs):
    """A text, whatever it was."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def is_a_dict(value):
    """Whether it is a mapping."""
    return isinstance(value, dict)


def is_a_list(value):
    """Whether it is a list."""
    return isinstance(value, list)


def is_a_str(value):
    """Whether it is a text."""
    return isinstance(value, str)


def is_iter(value):
    """Whether it has items: a list, a mapping, a set; no text."""
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
