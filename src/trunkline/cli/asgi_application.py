"""Finds the ASGI application that ``MODULE:ATTRIBUTE`` names; what is wrong with that is said with its remedy."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trunkline.cli.failure import Failure, usage


def load(name: str, *, factory: bool, folder: Path) -> Callable[..., Any]:
    """Import the application.

    Args:
        name: ``package.module:attribute``; the attribute may have dots.
        factory: the attribute is a function without arguments that makes the application.
        folder: what is looked for modules first.

    Raises:
        Failure: there is no such thing, its module fails, or it is no ASGI 3 application.
    """
    module_name, _, attribute = name.partition(":")
    if "/" in module_name or module_name.endswith(".py"):
        example = Path(module_name).with_suffix("").as_posix().strip("/").replace("/", ".")
        raise usage(f"{name} is a file, and a module is wanted", f"write {example}:app, with --app-dir where it is")
    if not module_name or not attribute:
        raise usage(f"{name!r} does not name an application", f"write MODULE:ATTRIBUTE, {module_name or 'main'}:app")
    module = _module(module_name, folder)
    found = _attribute(module, module_name, attribute)
    if factory:
        if not _takes(found, 0):
            raise usage(f"{name} is no factory: it takes arguments", "leave --factory out, or name the factory")
        try:
            found = found()
        except Exception as error:
            raise _failed(f"{name} failed", error) from error
    _check(name, found, factory=factory)
    return found  # type: ignore[no-any-return]


def _module(name: str, folder: Path) -> Any:
    if not folder.is_dir():
        raise usage(f"--app-dir {folder} is no folder", "name the folder that holds the module or package")
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise usage(
                f"There is no module {missing} in {folder.resolve()}, nor among what is installed",
                "name its folder with --app-dir, or correct the name",
            ) from None
        raise Failure(
            f"{name} needs the module {missing}, which is not installed here",
            f"install it for {sys.executable}, which runs trunkline",
        ) from None
    except (Exception, SystemExit) as error:
        raise _failed(f"{name} cannot be imported", error) from error


def _attribute(module: Any, module_name: str, attribute: str) -> Any:
    found = module
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        there = [key for key, value in vars(module).items() if not key.startswith("_") and _looks_like_one(value)]
        remedy = f"it has {', '.join(there)}" if there else "define it there, or name another module"
        raise usage(f"{module_name} has no attribute {attribute}", remedy) from None
    return found


def _check(name: str, found: Any, *, factory: bool) -> None:
    """Refuse what is no ASGI 3 application, as far as that shows."""
    what = f"What {name} makes" if factory else name
    if inspect.iscoroutine(found):
        found.close()
        raise usage(f"{what} is a coroutine", "make the factory a plain function")
    if not callable(found):
        raise usage(f"{what} is no ASGI application but {_kind(found)}", "name the application itself")
    if _takes(found, 3):
        return
    if _takes(found, 0):
        raise usage(f"{name} takes no arguments, so it is no ASGI application", "if it makes one, add --factory")
    if _takes(found, 2):
        remedy = "wrap it: asgiref.wsgi.WsgiToAsgi(app)"
        raise usage(f"{what} is no ASGI application but looks like WSGI (Flask and the like)", remedy)
    raise usage(f"{what} is no ASGI 3 application: it does not take scope, receive and send", "name the application")


def _takes(found: Any, count: int) -> bool:
    """Whether it can be called with so many positional arguments; True where that cannot be known."""
    try:
        inspect.signature(found).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _looks_like_one(value: Any) -> bool:
    return callable(value) and not inspect.isclass(value) and _is_async(value) and _takes(value, 3)


def _is_async(value: Any) -> bool:
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__)


def _kind(value: Any) -> str:
    return "a module" if inspect.ismodule(value) else f"a {type(value).__name__}"


def _failed(what: str, error: BaseException) -> Failure:
    """An exception of the application's own code: what it is, and where."""
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({error.filename}, line {error.lineno})"
    elif frames := traceback.extract_tb(error.__traceback__):
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return Failure(f"{what}: {type(error).__name__}: {text}{where}", "correct that, and start again")
