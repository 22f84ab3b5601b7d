"""Changes to vLLM and other builds: each gap with its reason, closed where it is.

`cpu.py` closes gaps of vLLM's CPU backend inside vLLM's own processes. `torchvision_cpu.py` lets a CUDA build of
torchvision load on a CPU torch; `python -m serve_app.vllm_patches` installs it into the environment.
`vllm_api_check.py` checks that every vLLM name that this application uses exists in a given vLLM.
"""
