# make demo    read a scanned page through three tiers, then lose one of them
# make test    linting, types, import layers and all tests
# make lint    the first three of those
# make test-torch   the tests that need PyTorch, which is not part of the environment above
# make bench-gpu   the cuda target against PyTorch, with PyTorch and a GPU
# make soak    ten minutes of faults at random: 10,000 requests, each answered once and rightly, nothing left over
# make test-ray     the decoder service in replicas of Ray Serve, which is not part of the environment above
# make test-qnn   models of the zoo on the emulator of the Snapdragon's NPU
# make test-onnx2coreml   packages of another converter in the interpreter of Core ML packages
# make test-onnx2tf       files of another converter beside ours; onnx2tf needs Python 3.12 (PYTHON312=...)
# make test-tflite-runtime  our files in tflite-runtime's interpreter, which needs NumPy 1 and Python 3.11 (PYTHON311=...)
# make test-openvino   ONNX Runtime's artifacts by OpenVINO on this CPU, from a package beside the environment
# make test-cann   artifacts for Ascend with onnxruntime-cann, which refuses without an Ascend; it needs NumPy 1
# make test-large   tests with models of over 300 MB, which make test leaves out
# make bench   the figures that the README and docs/ state; SCISSION=FILE adds the comparison with that data
# make scorecards   certify the targets whose SDK is installed, and write docs/scorecards/ and the table of docs/conformance.md;
#                   TARGETS="ort coreml litert" leaves out qnn, whose emulator takes a quarter of an hour
# make lock    renew requirements.lock from pyproject.toml
# make clean   remove what these made

PYTHON ?= python3
PYTHON311 ?= python3.11
PYTHON312 ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
BENCHES := numerics flagir_corpus flagir_fuzz solver makespan cost_model regret squeeze engine residency \
	pipeline failover swap transport adapt phone_build int8 decoder transcribe
READY := $(VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-torch test-ray test-qnn test-onnx2coreml test-onnx2tf test-tflite-runtime test-openvino test-cann test-large lint bench bench-gpu soak scorecards lock clean
.DEFAULT_GOAL := test

# The environment is made again when what it must hold changes; otherwise it is reused as it is.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m flagsplit.apps.demo

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-torch: $(READY)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'torch==2.13.0' 'transformers==5.23.0'
	$(BIN)/python -m pytest -q tests/flagir/test_torch_program.py tests/flagir/programs/test_torch_exports.py \
		tests/apps/test_minilm_on_phones.py tests/targets/cloud/cuda

test-ray: $(READY)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'ray[serve]==2.60.0'
	$(BIN)/python -m pytest -q tests/apps/decoder_service/test_ray_engine.py \
		tests/apps/decoder_service/test_on_ray.py

test-qnn: $(READY)
	$(BIN)/python -m pytest -q -m large tests/targets/mobile/qnn

# What it needs is installed already.
test-onnx2coreml: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps 'onnx2coreml==1.1.0'
	$(BIN)/python -m pytest -q tests/apps/test_zoo_packages.py

test-onnx2tf: $(READY)
	$(PYTHON312) -m venv $(VENV)-onnx2tf
	$(VENV)-onnx2tf/bin/python -m pip install --quiet 'onnx2tf==2.6.9'
	FLAGSPLIT_ONNX2TF=$(CURDIR)/$(VENV)-onnx2tf/bin/onnx2tf $(BIN)/python -m pytest -q tests/apps/test_zoo_tflite.py

test-tflite-runtime: $(READY)
	$(PYTHON311) -m venv $(VENV)-tflite-runtime
	$(VENV)-tflite-runtime/bin/python -m pip install --quiet 'tflite-runtime==2.14.0' 'numpy<2' \
		'onnx==1.23.2' 'onnx-ir==1.1.0' 'onnxscript==0.7.2' onnxruntime 'pydantic>=2.10,<3'
	FLAGSPLIT_TFLITE_RUNTIME=$(CURDIR)/$(VENV)-tflite-runtime/bin/python \
		$(BIN)/python -m pytest -q tests/targets/mobile/litert/test_tflite_runtime.py

test-openvino: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)-openvino 'onnxruntime-openvino==1.24.1'
	PYTHONPATH=$(CURDIR)/$(VENV)-openvino $(BIN)/python -m pytest -q tests/targets/test_openvino.py

test-cann: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)-cann 'onnxruntime-cann==1.24.4' 'numpy<2'
	PYTHONPATH=$(CURDIR)/$(VENV)-cann $(BIN)/python -m pytest -q tests/targets/cloud/ascend

test-large: $(READY)
	$(BIN)/python -m pytest -q -m large

bench: $(READY)
	for program in $(BENCHES); do $(BIN)/python bench/$$program.py --json || exit 1; done
	test -z "$(SCISSION)" || $(BIN)/python bench/scission.py "$(SCISSION)" --json

bench-gpu: $(READY)
	$(BIN)/python bench/gpu.py --json

soak: $(READY)
	$(BIN)/python bench/soak.py --json
	$(BIN)/python bench/decode_chaos.py --json

scorecards: $(READY)
	$(BIN)/python tools/scorecards.py $(TARGETS)

lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet '.[dev]'
	$(VENV)-lock/bin/python -m pip freeze --exclude flagsplit > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-onnx2tf $(VENV)-tflite-runtime build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
