"""All package metadata; pyproject.toml has the build system, ruff and pytest only."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "ray": ["ray>=2.40"],
    "report": ["altair>=6", "pyarrow", "vl-convert-python>=1.9"],
    "serve": [
        "fastapi>=0.110",
        "uvicorn>=0.30",
        "tensorflow-serving-api>=2.16",
    ],
    "micro": ["tflite-micro"],
}
EXTRAS["browser"] = ["playwright>=1.40", "pytest>=8"]  # beside a Chromium: the tests of the gallery's page
EXTRAS["docs"] = ["myst-nb>=1.4", "pydata-sphinx-theme>=0.16", "sphinx>=8"]
EXTRAS["test"] = [
    *EXTRAS["report"],
    *EXTRAS["micro"],
    *EXTRAS["ray"],
    *EXTRAS["serve"],
    "build>=1",
    "hypothesis>=6",
    "import-linter>=2.5",
    "ipykernel>=6",
    "nbclient>=0.10",
    "nbformat>=5",
    "pytest-xdist>=3.6",
    "pytest>=8",
    "ruff==0.17.6",
    "setuptools>=77",
    "sybil>=9",
]

setup(
    name="factorizenet_tf",
    version="0.1.0",
    description="Which granularity of depth factorization, under int8 quantization, for my budget: FactorizeNet on TensorFlow",
    # Its links and the picture are relative, for readers of the checkout and the site: the project has no address to name.
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="quantization int8 depthwise-separable grouped-convolution tflite tinyml keras-tuner",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11,<3.14",
    # `zoo/` (what is published) is installed as package data beside the code that loads it.
    packages=[*find_packages(include=["factorizenet_tf", "factorizenet_tf.*"]), "factorizenet_tf._zoo"],
    package_dir={"factorizenet_tf._zoo": "zoo"},
    package_data={
        "factorizenet_tf": [
            "py.typed",
            "*.pyi",
            "*/*.pyi",
            "**/*.txt",
            "*/*.html",
            "tflite/micro_templates/*.in",
            "zoo/gallery_page/**/*.*",
        ],
        "factorizenet_tf._zoo": ["*.json", "*.md", "*.svg", "cards/*.md", "cards/*.svg", "findings/*", "models/*/*"],
    },
    install_requires=[
        "ai-edge-litert>=1.2",
        "filelock>=3.12",
        "h5py>=3.10",
        "importlib_resources>=5",  # tensorflow-datasets imports it and does not ask for it
        "joblib>=1.3",
        "keras-tuner>=1.4.7",
        "lazy_loader>=0.4",
        "numpy>=1.26",
        "pandas>=2.1",
        "pillow>=10",
        "pooch>=1.8",
        "pydantic>=2.5",
        "requests>=2.32.2",
        "rich>=13",
        "scikit-learn>=1.4",
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9.4",
        "tensorflow-model-optimization>=0.8.0",
        "tf_keras>=2.18",
        "tqdm>=4.60",  # the bar of a download
        "typer>=0.12",
        "typing_extensions>=4.6",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["factorizenet = factorizenet_tf.cli:main"]},
)
