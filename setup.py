"""Packaging of mansu_jax; see BUILD.md for why each dependency is here."""

import pathlib

import setuptools

_ROOT = pathlib.Path(__file__).parent
_BASE = [
    'absl-py>=2.1',
    'flax>=0.10.6',
    'gguf>=0.17',  # Reads .gguf files; NumPy only.
    'huggingface_hub>=1.0',  # Hub ids, shards; comes with transformers.
    'jax>=0.7.1',  # set_mesh.
    'jinja2>=3.1',  # Chat templates; transformers does not bring it.
    'ml_dtypes>=0.5',  # bfloat16 in NumPy; comes with jax.
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11',
    'safetensors>=0.5',
    'scipy>=1.13',  # Quantiles of the intervals; comes with jax.
    'tokenizers>=0.22',  # Tokenizer of a .gguf; comes with transformers.
    'tqdm>=4.66',  # Progress bars; comes with transformers.
    'transformers>=5.0',  # Configs and tokenizers; no model code.
]

setuptools.setup(
    name='mansu_jax',
    version='0.1.0',
    description='Machine unlearning that survives 4-bit quantization, in JAX.',
    long_description=(_ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    keywords=['jax', 'language models', 'machine unlearning', 'quantization'],
    packages=setuptools.find_packages(include=['mansu_jax', 'mansu_jax.*']),
    package_data={'mansu_jax': [
        'data/shipped/*', 'data/facts/*.json', 'models/shapes/*.json']},
    python_requires='>=3.11',
    install_requires=_BASE,
    extras_require={
        'cuda12': ['jax[cuda12]>=0.7.1'],
        'cuda13': ['jax[cuda13]>=0.7.1'],
        'tpu': ['jax[tpu]>=0.7.1'],
        # The TPU's compiler alone, for --mode=plan where there is no TPU; in an
        # environment of its own, since it slows the start of JAX.
        'plan': ['libtpu>=0.0.40'],
        'parity': ['accelerate>=1.0', 'bitsandbytes>=0.50', 'qwix>=0.1',
                   'torch>=2.5'],
        'bench': ['bitsandbytes>=0.50', 'qwix>=0.1', 'torch>=2.5', 'torchao'],
        'tofu': ['rouge-score>=0.1.2'],  # ROUGE-L as the benchmark counts it.
        'llamacpp': ['llama-cpp-python>=0.3.36'],  # Compiles for minutes.
        # The documentation site; MkDocs 2 drops plugins and themes.
        'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.5',
                 'mkdocstrings[python]>=0.29', 'ruff'],
        'dev': ['build>=1', 'chex>=0.1.90', 'hypothesis>=6.100', 'ipykernel>=6',
                'nbclient>=0.10', 'nbformat>=5.10', 'pytest>=8',
                'pytest-xdist>=3.5', 'rouge-score>=0.1.2'],
    },
    entry_points={'console_scripts': ['mansu_jax = mansu_jax.__main__:run']},
)
