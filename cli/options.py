"""Options that several commands share, and options made from the library's table of settings."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fastadam.config import defaults, load_toml, settings
from fastadam.errors import ConfigError
from fastadam.setting import Setting, nearest, shown

F = TypeVar("F", bound=Callable[..., Any])

NOT_IN_FILES = ("config", "out", "resume", "help")
"""Options that say where a run is, not what it is."""


DEFAULT, FILE, ENVIRONMENT, COMMAND_LINE = range(4)
"""Where a value comes from, the stronger the greater."""


class SettingType(click.ParamType):
    """Values as a ``Setting`` allows them: the same rules for the command line, the environment and files."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.name = setting.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value in the setting's own type; a usage error says what is wrong with it."""
        try:
            return self.setting.parse(value) if isinstance(value, str) else self.setting.check(value)
        except ValueError as error:
            self.fail(f"{error}{_variable(param, ctx)}", param, ctx)

    def check(self, value: Any) -> None:
        """ValueError for what a file must not have."""
        self.setting.check(value)


class ListType(SettingType):
    """Values separated by commas, each as a ``Setting`` allows it; one given twice counts once."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """All values, in their order."""
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        words = words if isinstance(words, list | tuple) else [words]
        convert = super().convert
        return tuple(dict.fromkeys(convert(word, param, ctx) for word in words))

    def check(self, value: Any) -> None:
        """ValueError for what a file must not have."""
        if isinstance(value, list) and not value:
            raise ValueError("must have one value at least, found []")
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        for word in words:
            self.setting.parse(word.strip()) if isinstance(word, str) else self.setting.check(word)


class PathType(click.Path):
    """A path; an empty one, from an unset variable of a shell perhaps, does not stand for the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)  # whoever reads it says more about why that fails

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value as a ``Path``; a usage error if it is empty."""
        if value == "":
            self.fail("must be a path, found ''", param, ctx)
        return super().convert(value, param, ctx)


def _variable(param: click.Parameter | None, ctx: click.Context | None) -> str:
    """ ", from the variable X", if the value comes from the environment."""
    if param is None or ctx is None or param.name is None or source_of(ctx, param.name) != ENVIRONMENT:
        return ""
    return f", from the variable {ctx.auto_envvar_prefix}_{param.name.upper()}"


def setting_options(*names: str, required: bool = False) -> Callable[[F], F]:
    """Options for the settings of a training run with these names, in this order."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            function = value_option(name, settings()[name], defaults()[name], required)(function)
        return function

    return decorate


def value_option(
    name: str, setting: Setting, default: Any, required: bool = False, several: bool = False
) -> Callable[[F], F]:
    """One option with the rules of a setting; a required one has no default, ``several`` takes a list of values."""
    flag = "--" + name.replace("_", "-")
    if setting.kind == "flag":
        both, told = f"{flag}/--no-{flag[2:]}", setting.default_text or True
        return click.option(both, name, default=default, show_default=told, help=setting.help)
    return click.option(
        flag,
        name,
        type=ListType(setting) if several else SettingType(setting),
        metavar=setting.metavar,
        help=setting.help,
        **({"required": True} if required else {"default": default, "show_default": setting.default_text or True}),
    )


def switch(name: str, help: str) -> Callable[[F], F]:
    """An option that is off unless it is given."""
    return click.option("--" + name.replace("_", "-"), name, is_flag=True, show_default="off", help=help)


json_option = switch("json", "Print one JSON object, nothing else, on standard output.")
quiet_option = switch("quiet", "No progress on standard error; warnings stay.")


def config_option(function: F) -> F:
    """``--config FILE``: options by name in a TOML file; an unknown one is an error."""
    return click.option(
        "--config",
        type=PathType(),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        show_default="none",
        help="TOML file with options by their names, such as json = true.",
    )(function)


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    known = {option.name: option for option in ctx.command.params if isinstance(option, click.Option)}
    known = {name: option for name, option in known.items() if name not in NOT_IN_FILES}
    table = load_toml(path)
    for name, value in table.items():
        if name not in known:
            reason = f"; give --{name} on the command line" if name in NOT_IN_FILES[1:3] else nearest(name, known)
            raise ConfigError(f"{path}: there is no setting {shown(name)}{reason}")
        try:
            _check(known[name], value)
        except ValueError as error:
            raise ConfigError(f"{path}: {name} {error}") from None
        if known[name].multiple and isinstance(value, str):
            table[name] = [value]
    ctx.default_map = table


def _check(option: click.Option, value: Any) -> None:
    if isinstance(option.type, SettingType):
        option.type.check(value)
    elif option.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, found {shown(value)}")
    elif option.multiple and isinstance(value, list):
        for one in value:
            _check_text(one)
    else:
        _check_text(value)


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, found {shown(value)}")


def group_help(ctx: click.Context) -> None:
    """For a group without a command: show what there is."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the installed version and stop."""
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"fastadam {version('fastadam')}")
        ctx.exit()


def source_of(ctx: click.Context, name: str) -> int:
    """Where an option's value comes from: DEFAULT, FILE, ENVIRONMENT or COMMAND_LINE."""
    ranks = {
        click.core.ParameterSource.COMMANDLINE: COMMAND_LINE,
        click.core.ParameterSource.ENVIRONMENT: ENVIRONMENT,
        click.core.ParameterSource.DEFAULT_MAP: FILE,
    }
    source = ctx.get_parameter_source(name)
    return DEFAULT if source is None else ranks.get(source, DEFAULT)


def unused_variables(ctx: click.Context) -> list[str]:
    """A warning for each variable of the environment that is named like an option of this command, but is none."""
    prefix = f"{ctx.auto_envvar_prefix}_"
    known = [option.name.upper() for option in ctx.command.params if option.name]
    return [
        f"{name} has no effect: there is no such option{nearest(name.removeprefix(prefix), known)}"
        for name in sorted(os.environ)
        if name.startswith(prefix) and name.removeprefix(prefix) not in known
    ]


def print_json(value: Any) -> None:
    """The one JSON object of ``--json``."""
    from fastadam.run import json_text

    click.echo(json_text(value, ascii_only=True))


def human_seconds(seconds: float) -> str:
    """A duration for people: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
