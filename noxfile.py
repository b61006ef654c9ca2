"""The project's jobs, for nox and for those who have no nox.

``python3 noxfile.py demo`` and ``python3 noxfile.py tests`` need nothing but Python 3.11 or later:
run as a script, this file makes an environment with nox under ``.nox/`` and hands over to it.
Those who have nox use it as usual: ``nox -s tests``.
"""

# The first part is read by whatever Python there is: no syntax here that Python 3.6 lacks.

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

OLDEST_PYTHON = (3, 11)
NOX = "nox>=2024.4.15"  # the first with nox.options.reuse_venv
HERE = pathlib.Path(__file__).resolve().parent
PYTHON = "python{}.{}".format(*sys.version_info)
ENVIRONMENTS = HERE / ".nox" / PYTHON  # nox would use one Python's environments with another


def run_as_script() -> None:
    """Run ``nox -s SESSION... [OPTION...]``, after installing nox where only this file looks."""
    if sys.version_info[:2] < OLDEST_PYTHON:
        sys.exit(
            "noxfile.py: Python {}.{} or later is needed".format(*OLDEST_PYTHON)
            + f", and this is {PYTHON} ({sys.executable})"
        )

    environment = ENVIRONMENTS / "nox"
    executable = environment / "bin" / "python"
    done = environment / "nox-is-installed"  # written last: without it, the rest may be half there
    if not (done.exists() and executable.exists()):
        print(f"noxfile.py: installing nox in {environment}", flush=True)
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(environment)]) != 0:
            sys.exit(
                f"noxfile.py: {sys.executable} cannot make a virtual environment, for the reason "
                f"above (Debian and Ubuntu have the venv module in a package of its own, "
                f"python3-venv)"
            )
        pip = [str(executable), "-m", "pip", "--disable-pip-version-check"]
        if subprocess.call([*pip, "install", "--quiet", NOX]) != 0:
            sys.exit("noxfile.py: nox could not be installed, for the reason above")
        done.touch()

    sessions = []
    options = sys.argv[1:]
    while options and not options[0].startswith("-"):
        sessions.append(options.pop(0))
    command = [str(executable), "-m", "nox", "-f", str(HERE / "noxfile.py")]
    if sessions:
        command += ["-s", *sessions]
    os.execv(command[0], command + options)


if __name__ == "__main__":
    run_as_script()

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.envdir = str(ENVIRONMENTS)
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "docs", "tests"]


def install(session: nox.Session, *requirements: str) -> None:
    """Install what a session needs, once, and again when that or pyproject.toml has changed."""
    stamp = pathlib.Path(session.virtualenv.location, "installed")
    facts = [str(HERE), *requirements, (HERE / "pyproject.toml").read_text(encoding="utf-8")]
    wanted = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        session.install(*requirements)
        stamp.write_text(wanted)


# Tools are run as modules: unlike a script's first line, that survives moving the checkout.


@nox.session
def demo(session: nox.Session) -> None:
    """An echo server on a real port, and clients that talk to it."""
    install(session, "-e", ".")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, and that they cover everything; or, with arguments, what pytest makes of those."""
    install(session, "-e", ".[test]")
    session.run("python", "tests/peers/install.py")
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
        return
    # A process for each core, and few of them, for each collects all tests: ten seconds or so.
    # Who is done takes over tests from another that has more of them left.
    processes = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
    session.run("python", "-m", "pytest", "--cov", *processes)
    session.run("python", "tests/own_coverage.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and types; and that the installed wheel is typed, and has its program."""
    install(session, ".[lint,test]")
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")
    session.run("python", "-m", "mypy")
    session.install("--no-deps", "--force-reinstall", "--no-build-isolation", ".")
    environment = pathlib.Path(session.virtualenv.location)
    with session.chdir(environment):  # in the checkout it would look at the sources instead
        session.run(
            *("python", "-m", "pyright", "--pythonpath", str(environment / "bin" / "python")),
            *("--verifytypes", "trio_bytetalk", "--ignoreexternal"),
        )
        session.run("bytetalk", "--version")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in docs/_build/html. A warning is an error, and so is a broken link in it.

    Links to other sites are another session's, ``linkcheck``.
    """
    install(session, "-e", ".[docs]")
    shutil.rmtree("docs/_build/html", ignore_errors=True)  # pages that there are no more
    session.run(
        *("python", "-m", "sphinx", "--fresh-env", "--nitpicky", "--fail-on-warning"),
        *("--keep-going", "--quiet", "-b", "html", "docs/source", "docs/_build/html"),
    )
    session.run("python", "docs/check_links.py", "docs/_build/html")


@nox.session
def pictures(session: nox.Session) -> None:
    """Record the documentation's pictures of terminals anew, or those of the sessions named."""
    install(session, "-e", ".[cli,pictures]")
    session.run("python", "docs/record_sessions.py", *session.posargs)


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Whether the documentation's links to other sites lead somewhere. This needs a network."""
    install(session, "-e", ".[docs]")
    session.run(
        *("python", "-m", "sphinx", "--fresh-env", "--quiet"),
        *("-b", "linkcheck", "docs/source", "docs/_build/linkcheck"),
    )


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measurements against the other ways to do it. Arguments go to ``python -m benchmarks``."""
    install(session, "-e", ".[benchmark]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Whether the tests notice when the code is wrong. Arguments go to ``python -m mutation``."""
    install(session, "-e", ".[mutation,test]")
    session.run("python", "-m", "mutation", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Coverage-guided fuzzing; ``-- SECONDS TARGET...``. Arguments go to ``python -m fuzzing``."""
    install(session, "-e", ".[fuzz]")
    session.run("python", "-m", "fuzzing", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Load on a server, with all accounted for. Arguments go to ``python -m soak``."""
    install(session, "-e", ".")
    session.run("python", "-m", "soak", *session.posargs)
