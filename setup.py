"""Install SoloTrack. Detectron2 has no release on PyPI: see README.md, "Install"."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="solotrack",
    version="0.1.0",
    description="Learn to track instances from labelled images and unlabelled video (SOLO-Track, CVPR 2021) on Detectron2",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["solotrack", "solotrack.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "pillow>=10",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "yacs>=0.1.8",
        "tabulate",
        "cloudpickle",
        "termcolor>=1.1",
        "tensorboard",
        "matplotlib",
        "pycocotools>=2.0.8",
        "scipy>=1.11",
        "opencv-python-headless>=4.8",
        "av>=12",
        "orjson>=3.9",
        "tqdm>4.29",
        "setuptools<81",
    ],
    extras_require={
        "dev": ["pytest>=8", "pytest-xdist>=3.5", "ruff>=0.9"],
        "launch": ["submitit>=1.5"],
        "mot": ["trackeval>=1.3"],
    },
)
