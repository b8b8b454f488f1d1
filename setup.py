"""Package metadata. Requirement ranges are those tested (README, Installation); torch and torchvision have no upper bound."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "sce_video/__init__.py").read_text()).group(1)
EXPORT = ["safetensors>=0.4.3", "onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
PREP = ["jinja2>=3.1", "pyarrow>=17"]
CLUSTER = ["submitit>=1.5.2"]
TOPS = ["configs", "tools", "data_prep"]
INSIDE = [f"sce_video.{top}" for top in TOPS]

setup(
    name="sce_video",
    version=VERSION,
    description="Self-supervised pretraining of video encoders by Similarity Contrastive Estimation (SCE)",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["sce_video", "sce_video.*"]),
        *INSIDE,
        *(f"sce_video.{top}.{name}" for top in TOPS for name in find_packages(top)),
    ],
    # Recipes and programs lie at the top of the repository and are installed inside the package.
    package_dir={f"sce_video.{top}": top for top in TOPS},
    package_data={"": ["*.yaml", "*.sh"], "sce_video": ["py.typed", "*.pyi"]},
    entry_points={"console_scripts": ["sce-video = sce_video.__main__:main"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "av>=17.1",
        "pillow>=10",
        "hydra-core>=1.3.2,<2",
        "fvcore>=0.1.5.post20221221",
        "pytorchvideo>=0.1.5,<0.2",
        "tqdm>=4.66",
        'decord>=0.6.0; (platform_system == "Linux" and platform_machine == "x86_64") '
        'or (platform_system == "Windows" and platform_machine == "AMD64")',
    ],
    extras_require={
        "tracking": ["tensorboard>=2.17"],
        "torchcodec": ["torchcodec>=0.11"],
        "search": ["faiss-cpu>=1.8"],
        "evaluation": ["scikit-learn>=1.5"],
        "export": EXPORT,
        "prep": PREP,
        "cluster": CLUSTER,
        "dev": [
            *EXPORT,
            *PREP,
            *CLUSTER,
            "tensorboard>=2.17",
            "faiss-cpu>=1.8",
            "scikit-learn>=1.5",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "mypy>=1.11",
        ],
    },
)
