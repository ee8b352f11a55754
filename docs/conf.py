"""Settings of the documentation build (make docs). Nothing is downloaded."""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
# As in the tests: small models gain nothing from more threads, and nothing is downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import starlearn  # noqa: E402 - found through the path above

project = "starlearn"
author = "the authors of starlearn"
version = release = starlearn.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["outputs.css"]
html_title = f"starlearn {version}"
html_show_copyright = False
html_show_sourcelink = False

# Links to files of the repository that are not pages remain links for the repository's viewer.
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]  # the gallery's settings cannot be cached

# The public API. Docstrings contain the types, with shapes.
autosummary_generate = True
autodoc_typehints = "none"
ROUTING = ["fit", "predict", "predict_proba", "partial_fit", "transform", "inverse_transform"]
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    # scikit-learn adds these to every estimator. Their docstrings link to scikit-learn's pages.
    "exclude-members": ",".join(
        [f"set_{name}_request" for name in [*ROUTING, "score"]]
        + ["get_metadata_routing", "set_output"]
    ),
}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples" / "gallery"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1,
    "remove_config_comments": True,
    "capture_repr": (),  # only what an example prints, and no value of a last expression
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}
# Figures are drawn without a display, and matplotlib warns about this on show().
warnings.filterwarnings("ignore", message=".*non-interactive.*")
