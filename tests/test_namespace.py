"""What `import mllt` offers, and that it stays quick."""

import subprocess
import sys

import pytest

MODULES = ("callbacks", "data", "errors", "longtail", "losses", "methods", "metrics", "networks", "optim")


def fresh(code):
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_mllt_does_not_import_torch():
    heavy = ("torch", "lightning", "torchmetrics", "numpy", "timm", "hydra")
    assert fresh(f"import mllt, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_packages_are_reached_without_an_import_of_their_own():
    code = "; ".join(f"mllt.{name}" for name in MODULES)
    assert fresh(f"import mllt; {code}; print(mllt.longtail.compensate is mllt.compensate)") == "True"


def test_a_star_brings_the_names_but_no_packages():
    assert fresh("from mllt import *; print(MutualLTModule.method, 'data' in dir())") == "mutual False"


def test_dir_lists_names_and_packages():
    import mllt

    assert {*MODULES, *mllt.__all__} <= set(dir(mllt))
    assert {"ImageFolderLT", "MutualLTModule", "load_checkpoint", "__version__"} <= set(mllt.__all__)
    assert all(getattr(mllt, name) is not None for name in dir(mllt))


def test_an_unknown_name_is_an_attribute_error():
    import mllt

    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        mllt.loses  # noqa: B018
