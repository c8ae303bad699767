"""Competition notebooks for the tests of the dry run: the starter, each with one part replaced."""

# ruff: noqa: E501 - programs as texts
from notebooks.starter import DATA, IMPORTS, METHOD, RUN, changed

TRAIN = "    net.train()\n"
SAVE = 'torch.save(state, f"/kaggle/tmp/unlearned_checkpoint_{i}.pth")'
LOAD = '        net.load_state_dict(torch.load("/kaggle/input/neurips-2023-machine-unlearning/original_model.pth"))\n'
CALL = "unlearning(net, retain_loader, forget_loader, validation_loader)"
COUNT = """\
    unlearned_ckpts = os.listdir("/kaggle/tmp")
    if len(unlearned_ckpts) != 512:
        raise RuntimeError("Expected exactly 512 checkpoints. The submission will throw an exception otherwise.")
"""
TMP = "/kaggle/tmp"
HALF = SAVE.replace("state,", "{k: v.half() if v.is_floating_point() else v for k, v in state.items()},")
ZIP = 'subprocess.run("zip submission.zip /kaggle/tmp/*.pth", shell=True)'
KEEP = '        example["image"] = example["image"].to(torch.float32)\n'

# fault -> (cells, name of the check that fails, texts in what it found)
FAULTS = {
    "another file saved in each run": (
        changed((SAVE, f'torch.save(state, "/kaggle/tmp/last_checkpoint.pth")\n        {SAVE}')),
        "run",
        ["Expected exactly 512 checkpoints"],
    ),
    "the zip step is forgotten": (changed((ZIP, "pass")), "archive", ["does not exist"]),
    "the archive has another name": (
        changed(("zip submission.zip", "zip results.zip")),
        "archive",
        ["does not exist"],
    ),
    "names without folders": (changed(("zip sub", "zip -j sub")), "members", ["'unlearned_checkpoint_0.pth'"]),
    "names without folders, by shutil": (
        changed((ZIP, f'import shutil\n    shutil.make_archive("submission", "zip", "{TMP}")')),
        "members",
        ["with another name such as 'unlearned_checkpoint_"],
    ),
    "names without folders, zipped from within": (
        changed(
            (ZIP, ZIP.replace("zip submission.zip /kaggle/tmp/", f"cd {TMP}; zip /kaggle/working/submission.zip "))
        ),
        "members",
        ["'unlearned_checkpoint_0.pth'"],
    ),
    "names of a compiled net": (
        changed(
            (TRAIN, "    net.train()\n    compiled = torch.compile(net)\n"),
            ("state = net.state_dict()", "state = torch.compile(net).state_dict()"),
        ),
        "tensors",
        ["all names begin with '_orig_mod.'", "before it was compiled"],
    ),
    "names of DataParallel": (
        changed(("state = net.state_dict()", "state = nn.DataParallel(net).state_dict()")),
        "tensors",
        ["all names begin with 'module.'", "net.module.state_dict()"],
    ),
    "a wrapped state dict": (
        changed((SAVE, SAVE.replace("state,", '{"model_state_dict": state, "run": i},'))),
        "tensors",
        ["wrapped in {'model_state_dict': ...}"],
    ),
    "float16 that does not hold the variances": (
        changed((SAVE, f'state["bn1.running_var"] = 0 * state["bn1.running_var"] + 70000\n        {HALF}')),
        "tensors",
        ["bn1.running_var is infinite in float16"],
    ),
    "tuples where dicts are": (
        changed(
            ("    for sample in retain_loader:\n", "    for inputs, targets in retain_loader:\n"),
            (
                'inputs, targets = sample["image"].to(DEVICE), sample["age_group"].to(DEVICE)',
                "inputs, targets = inputs.to(DEVICE), targets.to(DEVICE)",
            ),
        ),
        "run",
        ["too many values to unpack", "cell 3, line 6: for inputs, targets in retain_loader:"],
    ),
    "a swallowed exception": (
        changed(
            (
                CALL,
                "pass\n        try:\n            unlearning(net, forget_loader)\n        except Exception as e: print(e)",
            )
        ),
        "all different",
        ["equals the original model", "nothing was trained"],
    ),
    "another net than the one that is saved": (
        changed(
            ("import os\n", "import copy\nimport os\n"),
            ("def unlearning(net,", "def unlearning(given,"),
            ("    criterion = nn", "    net = copy.deepcopy(given)\n    criterion = nn"),
        ),
        "all different",
        ["1 step of an optimiser changed another net than the one that was saved"],
    ),
    "every pair of batches": (
        changed(
            (
                "    for sample in retain_loader:\n",
                "    for sample in retain_loader:\n      for other in forget_loader:\n",
            ),
        ),
        "time",
        ["it grows with retain x forget"],
    ),
    "every pair of batches, the forget set's kept in a list": (
        changed(
            (
                "    for sample in retain_loader:\n",
                "    kept = list(forget_loader)\n    for sample in retain_loader:\n      for other in kept:\n",
            ),
        ),
        "time",
        ["it grows with retain x forget"],
    ),
    "wrong keys": (
        changed((SAVE, SAVE.replace("state,", '{"model." + k: v for k, v in state.items()},'))),
        "tensors",
        ["entries are missing, first conv1.weight"],
    ),
    "wrong shapes": (
        changed((SAVE, f'state["fc.weight"] = state["fc.weight"][:5]\n        {SAVE}')),
        "tensors",
        ["fc.weight has shape (5, 512)"],
    ),
    "integers instead of floats": (
        changed((SAVE, f'state["fc.weight"] = state["fc.weight"].to(torch.int8)\n        {SAVE}')),
        "tensors",
        ["fc.weight is torch.int8"],
    ),
    "not a number": (
        changed((SAVE, f'state["fc.bias"] = state["fc.bias"] / 0\n        {SAVE}')),
        "tensors",
        ["NaN or infinite"],
    ),
    "copies of the original": (changed((CALL, "pass")), "all different", ["equals"]),
    "a deterministic method": (
        changed((METHOD, "def unlearning(net, *loaders):\n    net.fc.weight.data.mul_(0.9)\n")),
        "all different",
        ["equals"],
    ),
    "a stray file that is counted": (
        changed(("    for i in range(512)", "    open('/kaggle/tmp/notes.txt', 'w').close()\n    for i in range(512)")),
        "/kaggle/tmp",
        ["/kaggle/tmp/notes.txt"],
    ),
    "pip without internet": (
        changed(("import os\n", "!pip install a-package-that-is-not-here\nimport os, a_package_that_is_not_here\n")),
        "offline",
        ["`pip install a-package-that-is-not-here` needs the internet at cell 1, line 1"],
    ),
    "a fixed seed inside the function": (
        changed((TRAIN, "    torch.manual_seed(42)\n" + TRAIN)),
        "seeds",
        ["torch is seeded with 42 in every run at cell 3, line 5: torch.manual_seed(42)"],
    ),
    "the data is read in every run": (
        changed((CALL, "unlearning(net, *get_dataset(64))")),
        "data",
        ["images are read again in one run at cell 2, line 3"],
    ),
    "augmentation in the cached images": (
        changed(
            (KEEP, KEEP + '        example["image"] = example["image"].flip(-1)\n'),
            ("inputs, targets", "\n        inputs, targets"),
        ),
        "cached images",
        ["HiddenDataset keeps change from run to run at cell 2, line 27"],
    ),
    "normalisation in the cached images": (
        changed((KEEP, KEEP.replace(".to(torch.float32)", ".to(torch.float32) / 255"))),
        "cached images",
        ["change from run to run"],
    ),
    "normalised inputs": (
        changed(('sample["image"].to(DEVICE)', '(sample["image"].to(DEVICE) - 127) / 64')),
        "inputs",
        ["values of at most"],
    ),
    "modules of the shared net": (
        changed((TRAIN, "    net.fc = nn.Linear(512, 10).to(DEVICE)\n" + TRAIN)),
        "shared net",
        ["fc of the net that all runs share is replaced at cell 3, line 5: net.fc = nn.Linear(512, 10)"],
    ),
    "another architecture": (
        changed((TRAIN, "    net.conv1.stride = (1, 1)\n" + TRAIN)),
        "shared net",
        ["no longer the architecture"],
    ),
    "BatchNorm statistics reset": (
        changed(
            (
                "    net.eval()",
                "    for m in net.modules():\n        if isinstance(m, nn.BatchNorm2d):\n"
                "            m.reset_running_stats()",
            )
        ),
        "BatchNorm",
        ["bn1 records statistics of other inputs"],
    ),
    "a long loop": (
        changed(("    for sample in retain_loader", "    for sample in [s for _ in range(15) for s in retain_loader]")),
        "time",
        ["checkpoints of 15.0 epochs"],
    ),
    "checkpoints kept beside the archive": (
        changed(
            ("/kaggle/tmp/unlearned_checkpoint", "/kaggle/working/kaggle/tmp/unlearned_checkpoint"),
            ('makedirs("/kaggle/tmp"', 'makedirs("/kaggle/working/kaggle/tmp"'),
            (COUNT, ""),
            ("/kaggle/tmp/*.pth", "kaggle/tmp/*.pth"),
        ),
        "size",
        ["in /kaggle/working for 512 checkpoints"],
    ),
}

# bad input -> (cells, name of the check that fails, texts in what it found, text in the last output)
BAD = {
    "a crash half-way": (
        changed((SAVE, f"{SAVE}\n        print('saved', i)\n        assert i < 1, 'half-way'")),
        "run",
        ["AssertionError: half-way at cell 4, line 14: assert i < 1"],
        "saved 1",
    ),
    "a syntax error": (
        changed(("def unlearning(net", "def unlearning(net]")),
        "run",
        ["SyntaxError", "cell 3, line 1"],
        "",
    ),
    "a hang": (
        changed((SAVE, f"{SAVE}\n        print('waiting', flush=True)\n        while True: pass")),
        "run",
        ["did not end within", "cell 4, line 14: while True: pass"],
        "waiting",
    ),
    "writing elsewhere": (
        changed((SAVE, "torch.save(state, f'/var/unlearned_checkpoint_{i}.pth')")),
        "writes",
        ["/var/unlearned_checkpoint_0.pth is written at cell 4, line 12: torch.save(state"],
        "",
    ),
    "filling the disk": (
        changed((SAVE, f"{SAVE}\n        open('/kaggle/working/big', 'wb').truncate(10**11)")),
        "run",
        ["File too large", "cell 4, line 13: open('/kaggle/working/big'"],
        "",
    ),
    "processes left behind": (
        changed((ZIP, ZIP + "\n    subprocess.Popen(['sleep', '1000'])")),
        "processes",
        ["`sleep 1000` still runs at the end at cell 4, line 18: subprocess.Popen(['sleep', '1000'])"],
        "",
    ),
    "processes without end": (
        changed(
            (TRAIN, "    for _ in range(2000):\n        os.fork() or (__import__('time').sleep(1000), os._exit(0))\n")
        ),
        "run",
        ["it started more than"],
        "",
    ),
    "fewer checkpoints": (
        changed((COUNT, ""), (SAVE, f"if i != 1: {SAVE}")),
        "members",
        ["missing such as kaggle/tmp/unlearned_checkpoint_1.pth"],
        "adding: kaggle/tmp/unlearned_checkpoint_0.pth",
    ),
    "pickled code": (changed((SAVE, SAVE.replace("state,", "net,"))), "tensors", ["does not load"], ""),
    "a killed kernel": (
        changed((SAVE, f"{SAVE}\n        os.kill(os.getpid(), 9)")),
        "run",
        ["the process died", "cell 4"],
        "",
    ),
}

# styles that are no faults
OPTIMISER = "optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)"
# The number of checkpoints is no 512 in the text: the run is stopped after as many as are wanted, and they are judged.
# What would end another program, and this one goes on without.
SURVIVED = {
    "a stray file": (
        changed(
            (COUNT, ""),
            ("    for i in range(512)", "    open('/kaggle/tmp/notes.txt', 'w').close()\n    for i in range(512)"),
        ),
        "/kaggle/tmp",
        ["/kaggle/tmp/notes.txt"],
    ),
    "pip without internet": (
        changed(("import os\n", "!pip install a-package-that-is-not-here\nimport os\n")),
        "offline",
        ["`pip install a-package-that-is-not-here` needs the internet at cell 1, line 1"],
    ),
    "use of the network": (
        changed(
            (
                "import os\n",
                "import os\nimport urllib.request\ntry:\n    urllib.request.urlopen('https://example.com')"
                "\nexcept OSError:\n    pass\n",
            )
        ),
        "offline",
        ["example.com is asked for at cell 1, line 4"],
    ),
}
UNCOUNTED = {
    "a text": changed(("for i in range(512)", "for i in range(int('512'))"), (COUNT, "")),
    "from the environment": changed(
        ("for i in range(512)", "for i in range(int(os.environ.get('RUNS', str(2**9))))"), (COUNT, "")
    ),
}
STYLES = {
    "seeds drawn in a list": changed(
        (
            "    for i in range(512)",
            "    seeds = torch.randint(9999, (2**9,)).tolist()\n    for i, seed in enumerate(seeds)",
        ),
        (COUNT, ""),
    ),
    "a whole state dict in float16": changed(
        (SAVE, SAVE.replace("state,", "{k: v.half() for k, v in state.items()},"))
    ),
    "a whole state dict in bfloat16, an archive with folders": changed(
        (SAVE, SAVE.replace("state,", "{k: v.bfloat16() for k, v in state.items()},")),
        (ZIP, 'import shutil\n    shutil.make_archive("submission", "zip", root_dir="/", base_dir="kaggle/tmp")'),
    ),
    "Adam, zip -r, a file for a moment": changed(
        (OPTIMISER, "optimizer = optim.Adam(net.parameters(), lr=1e-4)"),
        (ZIP, ZIP.replace("zip submission.zip /kaggle/tmp/*.pth", "zip -r submission.zip /kaggle/tmp")),
        ("    scheduler.step()\n", f'    scheduler.step()\n    torch.save(net.state_dict(), "{TMP}/best.pth")\n'),
        (
            "    net.eval()\n",
            f'    net.load_state_dict(torch.load("{TMP}/best.pth"))\n    os.remove("{TMP}/best.pth")\n',
        ),
    ),
    "a saving into memory first": changed(
        ("import os\n", "import io\nimport os\n"),
        (SAVE, f"torch.save(state, io.BytesIO())\n        {SAVE}"),
    ),
    "counted up under a watch": changed(
        ("    for i in range(512):\n", "    i, begun = 0, os.times().elapsed\n    while i < 512 and begun:\n"),
        (SAVE, f"{SAVE}\n        i += 1"),
    ),
    "a debug switch": changed(("for i in range(512)", "N = 2 if DEVICE == 'cpu' else 512\n    for i in range(N)")),
    "secrets that are tried for, data that is looked for": changed(
        (
            "import os\n",
            "import os\ntry:\n    from kaggle_secrets import UserSecretsClient\n    UserSecretsClient().get_secret('w')\n"
            "except Exception as error:\n    print(error)\nprint(os.path.exists('/kaggle/input/my-net'))\n",
        )
    ),
    "AdamW, a compiled net and gradients clipped": changed(
        (OPTIMISER, "optimizer = optim.AdamW(net.parameters(), lr=1e-4, fused=True)"),
        ("net.train()\n", "net.train()\n    compiled = torch.compile(net)\n"),
        ("criterion(net(inputs), targets)", "criterion(compiled(inputs), targets)"),
        ("state = net.state_dict()", "state = torch.compile(net)._orig_mod.state_dict()"),
        ("loss.backward()\n", "loss.backward()\n        nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n"),
    ),
    "a compiled net in DataParallel, the prefixes taken off, a layer's state looked at": changed(
        (
            SAVE,
            "state = nn.DataParallel(torch.compile(net)).state_dict()\n"
            "        state = {k.replace('module.', '').replace('_orig_mod.', ''): v for k, v in state.items()}\n"
            f"        print(list(net.fc.state_dict()))\n        {SAVE}",
        ),
    ),
    "Adam, DataParallel, the memory printed": changed(
        (OPTIMISER, "optimizer = optim.Adam(net.parameters(), lr=1e-4)\n    parallel = nn.DataParallel(net)"),
        ("criterion(net(inputs), targets)", "criterion(parallel(inputs), targets)"),
        (
            "    scheduler.step()\n",
            "    scheduler.step()\n    print(torch.cuda.memory_allocated() / 2**20)\n    torch.cuda.empty_cache()\n",
        ),
    ),
    "bfloat16 weights, an archive by shutil": changed(
        (SAVE, SAVE.replace("state,", "{k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()},")),
        (
            ZIP,
            "import zipfile\n    with zipfile.ZipFile('submission.zip', 'w') as file:\n        for name in sorted(os.listdir('/kaggle/tmp')):\n            file.write(f'/kaggle/tmp/{name}', f'kaggle/tmp/{name}')",
        ),
    ),
    "float16": changed(
        (SAVE, SAVE.replace("state,", "{k: v.half() if v.is_floating_point() else v for k, v in state.items()},"))
    ),
    "returns the net and takes a fifth argument": changed(
        ("forget_loader, val_loader):", "forget_loader, val_loader, epochs=1):"),
        ("    net.eval()\n", "    net.eval()\n    return net\n"),
        (CALL, "net = unlearning(net, retain_loader, forget_loader, validation_loader, 1)"),
    ),
    "concatenated data sets": changed(
        (
            "    criterion =",
            "    from torch.utils.data import ConcatDataset\n"
            "    both = ConcatDataset([retain_loader.dataset, val_loader.dataset])\n"
            "    retain_loader = DataLoader(both, batch_size=64, shuffle=True)\n    criterion =",
        ),
    ),
    "a data set of tuples, subclassed": changed(
        (
            "def get_dataset",
            "class Tuples(HiddenDataset):\n    def __getitem__(self, idx):\n"
            "        example = super().__getitem__(idx)\n        return example['image'], example['age_group']\n\n\ndef get_dataset",
        ),
        ("HiddenDataset(split=split)", "Tuples(split=split)"),
        (
            'inputs, targets = sample["image"].to(DEVICE), sample["age_group"].to(DEVICE)',
            "inputs, targets = (part.to(DEVICE, non_blocking=True) for part in sample)",
        ),
    ),
    "magics, class weights, imports": (
        "pip install -q torch",
        *changed(
            (
                "import os\n",
                "%matplotlib inline\nimport os, json\nimport matplotlib.pyplot as plt\n"
                "from sklearn.linear_model import LogisticRegression\nfrom tqdm.notebook import tqdm\n!nvidia-smi\n",
            ),
            (
                "    criterion = nn.CrossEntropyLoss()",
                "    counts = json.load(open(ROOT + 'age_class_weights.json'))\n"
                "    weights = torch.tensor([1 / max(1, counts[str(c)]) for c in range(10)], device=DEVICE)\n"
                "    criterion = nn.CrossEntropyLoss(weight=weights.cuda())",
            ),
            more="!du -sh /kaggle/tmp\n!ls /kaggle/working\nplt.plot([1, 2]); plt.show()",
        ),
    ),
    "mixed precision, a layer of width 512, a constant": changed(
        ("for i in range(512)", "for i in range(N)"),
        ("!= 512", "!= N"),
        ("    os.makedirs", "    N = 512\n    assert net_width == 512\n    os.makedirs"),
        (
            "    criterion =",
            "    scaler = torch.cuda.amp.GradScaler()\n    head = nn.Linear(512, 10).cuda()\n    criterion =",
        ),
        (
            "        loss = criterion(net(inputs), targets)\n        loss.backward()\n        optimizer.step()\n",
            "        with torch.autocast('cuda'):\n            loss = criterion(net(inputs), targets)\n"
            "        scaler.scale(loss).backward()\n        scaler.step(optimizer)\n        scaler.update()\n",
        ),
        ("def unlearning", "net_width = resnet18(num_classes=10).fc.in_features\n\n\ndef unlearning"),
        (".to(DEVICE)\n    for i", ".cuda()\n    for i"),
        ('original_model.pth")', 'original_model.pth", map_location=torch.device(DEVICE))'),
    ),
    "random seeds, workers, a deep copy": changed(
        (
            TRAIN,
            "    torch.manual_seed(int.from_bytes(os.urandom(4), 'little'))\n    teacher = copy.deepcopy(net)\n"
            + TRAIN,
        ),
        ("import os\n", "import copy\nimport os\n"),
        ("shuffle=True)", "shuffle=True, num_workers=1, pin_memory=True)"),
    ),
    "cells in shell and timed": (
        IMPORTS,
        DATA,
        "%%time\n" + METHOD,
        "%%bash\nls /kaggle/input/*/retain.csv\nmkdir -p /kaggle/tmp\n",
        RUN,
    ),
}
