"""Programs that try to get out of the sandbox, by group. None of them does harm where it gets through.

In the texts `@FILE@` and others stand for what a `World` (`sandbox_world.py`) has put up around the sandbox, and
`@nr:name@` for the number of a system call here. A program that got somewhere prints what it found, or THROUGH; whatever
it did to the world is seen there.
"""

import dataclasses
import platform
from typing import Literal

Bare = Literal["sure", "root", "depends", "never"]
"""Whether it is run without a sandbox, to show that it works: it must (as any user, or as root), it may (the kernel is not built
for it everywhere), or it would do harm."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One program."""

    group: str
    name: str
    code: str
    bare: Bare = "sure"
    ends: tuple[str, ...] = ()
    """Results that it must end with, where that is what the attack is about."""
    only: str = ""
    """Architecture that it is for; empty for any."""


PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result < 0:
        print("errno", ctypes.get_errno())
    return result
def through(*args):
    if call(*args) >= 0:
        print("THROUGH", flush=True)
"""

NUMBERS = {
    "x86_64": """
        ptrace=101 process_vm_readv=310 pidfd_open=434 pidfd_getfd=438 pidfd_send_signal=424 kcmp=312 tkill=200 tgkill=234
        rt_sigqueueinfo=129 vfork=58 clone=56 clone3=435 memfd_create=319 memfd_secret=447 userfaultfd=323
        perf_event_open=298 bpf=321 io_uring_setup=425 keyctl=250 add_key=248 request_key=249 mount=165 umount2=166
        pivot_root=155 chroot=161 setns=308 unshare=272 open_by_handle_at=304 name_to_handle_at=303 finit_module=313
        swapoff=168 acct=163 quotactl=179 personality=135 seccomp=317 landlock_create_ruleset=444 fanotify_init=300
        inotify_init1=294 mq_open=240 shmget=29 semget=64 msgget=68 timer_create=222 modify_ldt=154 iopl=172 syslog=103
        sched_setaffinity=203 setpriority=141 ioprio_set=251 mlockall=151 set_mempolicy=238 vmsplice=278 splice=275
        copy_file_range=326 fsopen=430 open_tree=428 mount_setattr=442 prctl=157 setuid=105 setresuid=117 setgroups=116
        capset=126 adjtimex=159 timerfd_create=283 execveat=322 membarrier=324 getpid=39 process_madvise=440
    """,
    "aarch64": """
        ptrace=117 process_vm_readv=270 pidfd_open=434 pidfd_getfd=438 pidfd_send_signal=424 kcmp=272 tkill=130 tgkill=131
        rt_sigqueueinfo=138 clone=220 clone3=435 memfd_create=279 memfd_secret=447 userfaultfd=282 perf_event_open=241
        bpf=280 io_uring_setup=425 keyctl=219 add_key=217 request_key=218 mount=40 umount2=39 pivot_root=41 chroot=51
        setns=268 unshare=97 open_by_handle_at=265 name_to_handle_at=264 finit_module=273 swapoff=225 acct=89 quotactl=60
        personality=92 seccomp=277 landlock_create_ruleset=444 fanotify_init=262 inotify_init1=26 mq_open=180 shmget=194
        semget=190 msgget=186 timer_create=107 syslog=116 sched_setaffinity=122 setpriority=140 ioprio_set=30
        mlockall=230 set_mempolicy=237 vmsplice=75 splice=76 copy_file_range=285 fsopen=430 open_tree=428
        mount_setattr=442 prctl=167 setuid=146 setresuid=147 setgroups=159 capset=91 adjtimex=171 timerfd_create=85
        execveat=281 membarrier=283 getpid=172 process_madvise=440
    """,
}


def number(name: str) -> int:
    """Return the number of a system call on this machine."""
    return int(dict(pair.split("=") for pair in NUMBERS[platform.machine()].split())[name])


def _sys(
    group: str, name: str, body: str, bare: Bare = "depends", *, ends: tuple[str, ...] = (), only: str = ""
) -> Attack:
    return Attack(group, name, PRELUDE + body, bare, ends, only)


READS = [
    Attack("read", "open", "print(open('@FILE@').read())"),
    Attack("read", "relative", "print(open('../' * 12 + '@FILE@'[1:]).read())"),
    Attack("read", "proc root", "print(open('/proc/self/root@FILE@').read())"),
    Attack("read", "cwd link", "print(open('/proc/self/cwd/' + '../' * 12 + '@FILE@'[1:]).read())"),
    Attack(
        "read",
        "O_PATH and reopen",
        "import os\nf = os.open('@FILE@', os.O_PATH)\nprint(open(f'/proc/self/fd/{f}').read())",
    ),
    Attack(
        "read",
        "from an inherited descriptor",
        "import os\nfor fd in range(100):\n    try: print(open(os.open('../' * 12 + '@FILE@'[1:], 0, dir_fd=fd)).read())\n"
        "    except OSError: pass\nos.chdir('/')\nprint(open(os.open('@FILE@'[1:], 0, dir_fd=os.open('/', 0))).read())",
    ),
    Attack(
        "read",
        "beside the library",
        "import os\nprint(open(os.path.dirname(os.__file__) + '/../' * 12 + '@FILE@'[1:]).read())",
    ),
    Attack("read", "mmap", "import mmap, os\nprint(mmap.mmap(os.open('@FILE@', 0), 0, prot=mmap.PROT_READ)[:])"),
    Attack(
        "read",
        "loader",
        "import importlib.machinery\nprint(importlib.machinery.SourceFileLoader('x', '@FILE@').get_data('@FILE@'))",
    ),
    _sys(
        "read",
        "libc",
        "libc.fopen.restype = ctypes.c_void_p\nf = ctypes.c_void_p(libc.fopen(b'@FILE@', b'r'))\nb = ctypes.create_string_buffer(200)\nif f: libc.fgets(b, 200, f)\nprint(b.value)",
        "sure",
    ),
    Attack("read", "list a folder", "import os\nprint(os.listdir('@FOLDER@'))"),
    Attack(
        "read",
        "walk",
        "import os\nfor x in os.listdir('/tmp'):\n    try: print(os.listdir('/tmp/' + x))\n    except OSError as e: print(e.errno)",
    ),
    Attack("read", "password file", "print(open('/etc/passwd').read())"),
    Attack(
        "read", "symbolic link", "import os\nos.symlink('@FILE@', '@FOLDER@/link')\nprint(open('@FOLDER@/link').read())"
    ),
    Attack(
        "read",
        "devices",
        "import os\nfor name in ('/dev/mem', '/dev/kmsg', '/dev/vda', '/dev/sda', '/dev/zero'):\n    try: os.open(name, 0), print('THROUGH')\n    except OSError as e: print(e)",
    ),
    Attack(
        "read",
        "installed packages",
        "import os, sys, glob\nfor top in ('@LIBRARY@', os.path.dirname(os.__file__)):\n    for f in glob.glob(top + '/*-packages/*/__init__.py') + glob.glob(top + '/*-packages/*.py'):\n        open(f).read(1)\n        print('THROUGH')",
        "depends",
    ),
    _sys(
        "read",
        "file handles",
        "h = (ctypes.c_uint * 40)(128)\nm = ctypes.c_int()\nif call(@nr:name_to_handle_at@, -100, b'@FILE@', h, ctypes.byref(m), 0) >= 0:\n    print('THROUGH')\nfor d in (b'/', b'/usr/lib'):\n    f = libc.open(d, 0)\n    through(@nr:open_by_handle_at@, f, h, 0)",
    ),
]

WRITES = [
    Attack("write", "create", "open('@FOLDER@/new', 'w').write('x')"),
    Attack("write", "append", "open('@FOLDER@/open.txt', 'a').write('x')"),
    Attack("write", "truncate", "import os\nos.truncate('@FOLDER@/open.txt', 0)"),
    Attack("write", "remove", "import os\nos.unlink('@FOLDER@/open.txt')"),
    Attack("write", "rename", "import os\nos.rename('@FOLDER@/open.txt', '@FOLDER@/renamed')"),
    Attack("write", "folder", "import os\nos.mkdir('@FOLDER@/made')"),
    Attack("write", "hard link", "import os\nos.link('@FOLDER@/open.txt', '@FOLDER@/linked')"),
    Attack("write", "named pipe", "import os\nos.mkfifo('@FOLDER@/pipe')"),
    Attack(
        "write", "device", "import os, stat\nos.mknod('@FOLDER@/null', 0o666 | stat.S_IFCHR, os.makedev(1, 3))", "root"
    ),
    Attack("write", "mode", "import os\nos.chmod('@FOLDER@/open.txt', 0o4777)"),
    Attack("write", "times", "import os\nos.utime('@FOLDER@/open.txt', (1, 1))"),
    Attack(
        "write",
        "attributes",
        "import os\nos.setxattr('@FOLDER@/open.txt', 'user.x', b'y')\nprint('THROUGH')",
        "depends",
    ),
    Attack(
        "write",
        "nameless file",
        "import os\nf = os.open('@FOLDER@', os.O_TMPFILE | os.O_RDWR, 0o600)\nos.write(f, b'x')\nprint('THROUGH')",
        "depends",
    ),
    Attack(
        "write",
        "temporary file",
        "import tempfile\nf = tempfile.NamedTemporaryFile()\nf.write(b'x')\nf.flush()\nprint('THROUGH')",
    ),
    Attack(
        "write",
        "shared memory folder",
        "import os\nf = os.open('/dev/shm/@MARK@', os.O_CREAT | os.O_RDWR)\nos.write(f, b'x')",
    ),
    Attack(
        "write",
        "database",
        "import sqlite3\nc = sqlite3.connect('@FOLDER@/x.db')\nc.execute('create table t (x)')\nc.commit()",
    ),
    Attack(
        "write",
        "library",
        "import os\nopen(os.path.dirname(os.__file__) + '/@MARK@.py', 'w').write('x = 1')\nos.unlink(os.path.dirname(os.__file__) + '/@MARK@.py')\nprint('THROUGH')",
        "root",
    ),
    Attack(
        "write",
        "null device as a file",
        "import os\nos.fchmod(os.open('/dev/null', os.O_RDWR), 0o666)\nprint('THROUGH')",
        "root",
    ),
]

PARENT = [
    Attack("parent", "environment", "import os\nprint(os.environ)"),
    _sys(
        "parent",
        "environment in C",
        "libc.getenv.restype = ctypes.c_char_p\nprint(libc.getenv(b'WORLD_SECRET'))",
        "sure",
    ),
    Attack(
        "parent",
        "environment of the parent",
        "import os\nfor pid in (os.getppid(), @JUDGE@, 1):\n    try: print(open(f'/proc/{pid}/environ').read())\n    except OSError as e: print(e)",
    ),
    Attack(
        "parent",
        "memory of the parent by file",
        "import os\nfor pid in (@JUDGE@, os.getppid()):\n    try:\n        f = os.open(f'/proc/{pid}/mem', 0)\n        print(os.pread(f, @SIZE@, @ADDRESS@))\n    except OSError as e: print(e)",
    ),
    _sys(
        "parent",
        "memory of the parent by call",
        "class V(ctypes.Structure): _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]\nb = ctypes.create_string_buffer(@SIZE@)\nl = V(ctypes.addressof(b), @SIZE@)\nr = V(@ADDRESS@, @SIZE@)\ncall(@nr:process_vm_readv@, @JUDGE@, ctypes.byref(l), 1, ctypes.byref(r), 1, 0)\nprint(b.raw)",
        "sure",
    ),
    _sys(
        "parent",
        "trace the victim",
        "through(@nr:ptrace@, 16, @VICTIM@, 0, 0)\ncall(@nr:ptrace@, 17, @VICTIM@, 0, 0)",
        "sure",
    ),
    _sys("parent", "trace the parent", "through(@nr:ptrace@, 0x4206, os.getppid(), 0, 0)", "sure"),
    _sys(
        "parent",
        "descriptors of the judge",
        "f = call(@nr:pidfd_open@, @JUDGE@, 0)\nif f >= 0: through(@nr:pidfd_getfd@, f, 0, 0)",
        "sure",
    ),
    Attack("parent", "memory that was inherited", "import ctypes\nprint(ctypes.string_at(@ADDRESS@, @SIZE@))", "never"),
    Attack(
        "parent",
        "objects that were inherited",
        "import gc, sys\nfor o in gc.get_objects():\n    try: t = repr(o)\n    except Exception: continue\n    if 'CANARY' in t.replace('CANARY' + chr(39), ''): print(t)\nfor m in list(sys.modules.values()): print(str(vars(m))[:100000])",
        "never",
    ),
    Attack(
        "parent",
        "descriptors that were inherited",
        "import os\nfor fd in range(5, 4096):\n    try: os.fstat(fd), print('THROUGH', fd)\n    except OSError: pass",
        "never",
    ),
    _sys("parent", "compare with the judge", "through(@nr:kcmp@, os.getpid(), @JUDGE@, 0, 0, 0)", "depends"),
    Attack(
        "parent",
        "command lines",
        "import os\nfor p in filter(str.isdigit, os.listdir('/proc')):\n    print(open(f'/proc/{p}/cmdline').read())\n    print(os.readlink(f'/proc/{p}/cwd')) if p == str(os.getppid()) else None\nprint('THROUGH')",
    ),
]

SOCKETS = [
    Attack("socket", "TCP", "import socket\nsocket.create_connection(('127.0.0.1', @TCP@), 2).send(b'@MARK@')"),
    Attack(
        "socket",
        "UDP",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'@MARK@', ('127.0.0.1', @UDP@))",
    ),
    Attack(
        "socket",
        "UNIX path",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('@FOLDER@/socket')\ns.send(b'@MARK@')",
    ),
    Attack(
        "socket",
        "UNIX abstract",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0@MARK@')\ns.send(b'@MARK@')",
    ),
    Attack(
        "socket",
        "datagram pair to an address",
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'@MARK@', '@FOLDER@/datagrams')",
        "sure",
    ),
    Attack(
        "socket",
        "pair and connect",
        "import socket\na, b = socket.socketpair()\na.close()\nb.connect('@FOLDER@/socket')\nb.send(b'@MARK@')",
        "never",
    ),
    Attack(
        "socket",
        "every family",
        "import socket\nfor family in range(46):\n    for kind in (1, 2, 3, 5):\n        try: socket.socket(family, kind), print('THROUGH', family, kind)\n        except (OSError, ValueError): pass",
    ),
    Attack(
        "socket",
        "every pair",
        "import socket\nfor family in range(46):\n    for kind in (1, 2, 3, 5):\n        try: socket.socketpair(family, kind), (family, kind) == (1, 1) or print('THROUGH', family, kind)\n        except (OSError, ValueError): pass",
    ),
    Attack(
        "socket", "listen", "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nprint('THROUGH')"
    ),
    Attack(
        "socket",
        "asyncio",
        "import asyncio\nasync def f():\n    r, w = await asyncio.open_connection('127.0.0.1', @TCP@)\n    w.write(b'@MARK@')\n    await w.drain()\nasyncio.run(f())",
    ),
    Attack(
        "socket",
        "name server",
        "import socket\nprint(socket.getaddrinfo('localhost', 80))\nsocket.create_connection(('localhost', @TCP@), 2).send(b'@MARK@')",
    ),
    Attack(
        "socket", "netlink", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nprint('THROUGH')"
    ),
    _sys(
        "socket",
        "the process at the other end",
        "import socket\na, b = socket.socketpair()\nf, n = ctypes.c_int(-1), ctypes.c_uint(4)\nfor fd in (a.fileno(), 4):\n    for option in (17, 77):\n        if libc.getsockopt(fd, 1, option, ctypes.byref(f), ctypes.byref(n)) == 0: print('THROUGH')",
    ),
    Attack(
        "socket",
        "pass a descriptor",
        "import array, socket\na, b = socket.socketpair()\na.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))])\nprint('THROUGH')",
    ),
]

SIGNALS = [
    Attack("signal", "kill", "import os\nos.kill(@VICTIM@, 10)"),
    Attack("signal", "kill the parent", "import os\nos.kill(os.getppid(), 0)\nprint('THROUGH')"),
    Attack("signal", "kill everybody", "import os\nos.kill(-1, 0)\nprint('THROUGH')"),
    Attack("signal", "kill the group", "import os\nos.kill(0, 0)\nprint('THROUGH')"),
    Attack("signal", "kill another group", "import os\nos.killpg(os.getpgid(@VICTIM@), 10)"),
    Attack(
        "signal",
        "kill itself for good",
        "import os\nprint('THROUGH' if os.getenv('WORLD_SECRET') else '', flush=True)\nos.kill(os.getpid(), 9)",
        ends=("sandbox_denied",),
    ),
    _sys("signal", "tgkill", "through(@nr:tgkill@, @VICTIM@, @VICTIM@, 10)", "sure"),
    _sys("signal", "tkill", "through(@nr:tkill@, @VICTIM@, 10)", "sure"),
    _sys(
        "signal", "queue", "i = (ctypes.c_int * 32)(10, 0, -1)\nthrough(@nr:rt_sigqueueinfo@, @VICTIM@, 10, i)", "sure"
    ),
    _sys(
        "signal",
        "by descriptor",
        "f = call(@nr:pidfd_open@, @VICTIM@, 0)\nthrough(@nr:pidfd_send_signal@, f, 10, None, 0)",
        "sure",
    ),
    Attack(
        "signal",
        "owner of a pipe",
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, @VICTIM@)\nfcntl.fcntl(r, 10, 10)\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\nprint('THROUGH')",
    ),
    Attack(
        "signal",
        "terminal",
        "import fcntl\nfor fd in (0, 1, 2, 4):\n    try: fcntl.ioctl(fd, 0x5412, b'x'), print('THROUGH')\n    except OSError as e: print(e)",
        "never",
    ),
    _sys("signal", "outlive the zygote", "through(@nr:prctl@, 1, 0, 0, 0, 0)", "sure"),
]

PROCESSES = [
    Attack(
        "process",
        "fork",
        "import os, time\nif os.fork() == 0:\n    print('THROUGH', flush=True)\n    time.sleep(0.2)\n    os._exit(0)\nos.wait()",
    ),
    _sys(
        "process",
        "vfork",
        "r = call(@nr:vfork@)\nif r == 0: libc._exit(0)\nif r > 0: print('THROUGH')",
        "never",
        only="x86_64",
    ),
    _sys(
        "process",
        "clone",
        "r = call(@nr:clone@, 17, 0, 0, 0, 0)\nif r >= 0: print('THROUGH', flush=True)\nif r == 0: os._exit(0)",
        "sure",
    ),
    _sys(
        "process",
        "threads with descriptors of their own",
        "m = ctypes.create_string_buffer(1 << 16)\nfor missing in (0x100, 0x400, 0x800):\n    if call(@nr:clone@, 0x10d00 & ~missing, ctypes.addressof(m) + (1 << 15), 0, 0, 0) >= 0: print('THROUGH')",
        "never",
    ),
    _sys(
        "process",
        "clone into namespaces",
        "r = call(@nr:clone@, 17 | 0x10000000, 0, 0, 0, 0)\nif r >= 0: print('THROUGH', flush=True)\nif r == 0: os._exit(0)",
        "depends",
    ),
    _sys(
        "process",
        "clone3",
        "a = (ctypes.c_ulonglong * 11)()\na[4] = 17\nr = call(@nr:clone3@, a, 88)\nif r >= 0: print('THROUGH', flush=True)\nif r == 0: os._exit(0)",
        "sure",
    ),
    Attack("process", "spawn", "import os\nos.waitpid(os.posix_spawn('/bin/echo', ['echo', 'THROUGH'], {}), 0)"),
    Attack(
        "process", "subprocess", "import subprocess\nprint(subprocess.check_output(['/bin/echo', 'THROUGH']).decode())"
    ),
    Attack("process", "system", "import os\nos.system('echo THROUGH')"),
    Attack("process", "exec", "import os\nos.execv('/bin/echo', ['echo', 'THROUGH'])"),
    Attack(
        "process",
        "exec the interpreter",
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-S', '-c', 'print(\"THRO\" + \"UGH\")'])",
    ),
    _sys(
        "process",
        "exec by descriptor",
        "f = os.open('/bin/echo', os.O_PATH)\na = (ctypes.c_char_p * 3)(b'echo', b'THROUGH', None)\nsys.stdout.flush()\ncall(@nr:execveat@, f, b'', a, None, 0x1000)",
        "sure",
    ),
    Attack(
        "process",
        "multiprocessing",
        "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=print, args=('THROUGH',))\np.start()\np.join()",
    ),
    Attack(
        "process", "terminal fork", "import os, pty\npid, fd = pty.fork()\nif pid == 0: os._exit(0)\nprint('THROUGH')"
    ),
    Attack(
        "process",
        "fork bomb",
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: print('THROUGH', flush=True)\n    except PermissionError: break",
        "never",
    ),
    Attack(
        "process",
        "thread bomb",
        "import os, threading, time\nthreading.stack_size(32768)\nn = 0\ntry:\n    while True:\n        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n        n += 1\n        if n == 1500: print('THROUGH', flush=True), os._exit(3)\nexcept RuntimeError: os._exit(3)",
        "sure",
    ),
]

RESOURCES = [
    Attack("resource", "one large object", "x = bytearray(1200 << 20)\nprint('THROUGH')", ends=("memory",)),
    Attack(
        "resource",
        "many small objects",
        "x = []\nwhile len(x) < 50: x.append(bytes(1 << 24))\nprint('THROUGH')",
        ends=("memory",),
    ),
    Attack("resource", "mapping", "import mmap\nx = mmap.mmap(-1, 6 << 30)\nprint('THROUGH')"),
    _sys(
        "resource",
        "file in memory",
        "f = call(@nr:memfd_create@, b'x', 0)\nif f >= 0: print('THROUGH', os.write(f, b'x' * 4096))",
        "sure",
    ),
    Attack(
        "resource",
        "raise limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nresource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\nprint('THROUGH')",
    ),
    Attack(
        "resource",
        "limits of others",
        "import resource\nresource.prlimit(@VICTIM@, resource.RLIMIT_CORE, (0, 0))\nprint('THROUGH')",
    ),
    Attack(
        "resource",
        "limits of others, read",
        "import resource\nprint('THROUGH', resource.prlimit(@VICTIM@, resource.RLIMIT_CORE))",
    ),
    Attack(
        "resource",
        "large pipes",
        "import fcntl, os\nfor i in range(20):\n    r, w = os.pipe()\n    fcntl.fcntl(w, 1031, 1 << 20)\nprint('THROUGH')",
    ),
    Attack("resource", "many files", "import os\nfds = [os.dup(1) for _ in range(200)]\nprint('THROUGH')"),
    Attack(
        "resource",
        "locked memory",
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\nif libc.mmap(0, 1 << 20, 3, 0x22 | 0x2000, -1, 0) != 2**64 - 1: print('THROUGH')",
    ),
    _sys("resource", "lock all memory", "through(@nr:mlockall@, 1)", "depends"),
    _sys("resource", "priority", "through(@nr:setpriority@, 0, 0, 5)", "sure"),
    _sys(
        "resource",
        "other cores",
        "m = ctypes.c_ulong(1)\nthrough(@nr:sched_setaffinity@, 0, 8, ctypes.byref(m))",
        "sure",
    ),
    Attack(
        "resource",
        "disk",
        "import os\nf = os.open('@FOLDER@/large', os.O_CREAT | os.O_WRONLY)\nos.write(f, b'x' * 100000)",
    ),
    Attack("resource", "endless loop", "while True: pass", "never", ends=("timeout",)),
    Attack("resource", "endless sleep", "import time\nwhile True: time.sleep(100)", "never", ends=("timeout",)),
    Attack(
        "resource",
        "deaf to signals",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        "never",
        ends=("timeout",),
    ),
    Attack("resource", "stopped", "import os\nos.kill(os.getpid(), 19)", "never", ends=("timeout",)),
    Attack(
        "resource",
        "closed and asleep",
        "import os, time\nos.closerange(0, 64)\ntime.sleep(100)",
        "never",
        ends=("timeout",),
    ),
    Attack(
        "resource",
        "thread that stays",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",
        "never",
        ends=("timeout",),
    ),
    Attack(
        "resource",
        "deep recursion",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f((x, f(x)))\nf(1)",
        "never",
        ends=("timeout", "runtime_error", "memory"),
    ),
]

CALLS = [
    _sys("call", "io_uring", "p = (ctypes.c_char * 120)()\nthrough(@nr:io_uring_setup@, 4, p)"),
    _sys("call", "bpf", "a = (ctypes.c_uint * 32)(2, 4, 4, 1)\nthrough(@nr:bpf@, 0, a, 128)"),
    _sys("call", "keyctl", "through(@nr:keyctl@, 0, -3, 1)"),
    _sys("call", "add_key", "through(@nr:add_key@, b'user', b'x', b'y', 1, -2)"),
    _sys("call", "request_key", "through(@nr:keyctl@, 1, 0)\nthrough(@nr:request_key@, b'user', b'x', 0, -2)"),
    _sys("call", "userfaultfd", "through(@nr:userfaultfd@, 1)"),
    _sys(
        "call",
        "perf_event_open",
        "a = (ctypes.c_uint * 32)(1, 128, 0)\na[10] = 0x21\nthrough(@nr:perf_event_open@, a, 0, -1, -1, 0)",
    ),
    _sys("call", "memfd_create", "through(@nr:memfd_create@, b'x', 1)", "sure"),
    _sys("call", "memfd_secret", "through(@nr:memfd_secret@, 0)"),
    _sys(
        "call",
        "mount",
        "through(@nr:mount@, b'none', b'@FOLDER@', b'tmpfs', 0, None)\ncall(@nr:umount2@, b'@FOLDER@', 2)",
        "root",
    ),
    _sys("call", "remount", "through(@nr:mount@, None, b'/', None, 0x40000, None)", "never"),
    _sys("call", "pivot_root", "through(@nr:pivot_root@, b'/', b'/')", "never"),
    _sys("call", "chroot", "through(@nr:chroot@, b'@FOLDER@')", "root"),
    _sys(
        "call",
        "setns",
        "f = libc.open(b'/proc/self/ns/uts', 0)\nthrough(@nr:setns@, f, 0)\nf = call(@nr:pidfd_open@, os.getppid(), 0)\nthrough(@nr:setns@, f, 0x4000000)",
        "root",
    ),
    _sys("call", "unshare user", "through(@nr:unshare@, 0x10000000)"),
    _sys("call", "unshare net", "through(@nr:unshare@, 0x40000000)", "root"),
    _sys("call", "unshare files", "through(@nr:unshare@, 0x400)", "sure"),
    _sys("call", "fsopen", "through(@nr:fsopen@, b'tmpfs', 0)"),
    _sys("call", "open_tree", "through(@nr:open_tree@, -100, b'/', 0)", "sure"),
    _sys("call", "load a module", "through(@nr:finit_module@, 0, b'', 0)", "never"),
    _sys("call", "swapoff", "through(@nr:swapoff@, b'@FILE@')", "never"),
    _sys("call", "acct", "through(@nr:acct@, b'@FOLDER@/open.txt')", "never"),
    _sys("call", "personality", "through(@nr:personality@, 0xffffffff)", "sure"),
    _sys(
        "call", "another filter", "a = ctypes.c_uint(0x7fff0000)\nthrough(@nr:seccomp@, 2, 0, ctypes.byref(a))", "sure"
    ),
    _sys(
        "call",
        "a listener for its filter",
        "c = (ctypes.c_ulonglong * 1)(0x7fff000000000006)\nclass P(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]\nlibc.prctl(38, 1, 0, 0, 0)\nthrough(@nr:seccomp@, 1, 8, ctypes.byref(P(1, ctypes.addressof(c))))",
        "sure",
    ),
    _sys("call", "another ruleset", "through(@nr:landlock_create_ruleset@, None, 0, 1)"),
    _sys("call", "fanotify", "through(@nr:fanotify_init@, 0, 0)"),
    _sys("call", "inotify", "through(@nr:inotify_init1@, 0)", "sure"),
    _sys("call", "message queue", "through(@nr:mq_open@, b'@MARK@', 0o102, 0o600, None)\nlibc.mq_unlink(b'/@MARK@')"),
    _sys(
        "call",
        "System V memory",
        "r = call(@nr:shmget@, 0, 4096, 0o1600)\nif r >= 0: print('THROUGH'), libc.shmctl(r, 0, None)",
    ),
    _sys(
        "call",
        "System V semaphores",
        "r = call(@nr:semget@, 0, 1, 0o1600)\nif r >= 0: print('THROUGH'), libc.semctl(r, 0, 0)",
    ),
    _sys(
        "call",
        "System V messages",
        "r = call(@nr:msgget@, 0, 0o1600)\nif r >= 0: print('THROUGH'), libc.msgctl(r, 0, None)",
    ),
    _sys(
        "call",
        "timer with a signal",
        "t = ctypes.c_int()\nthrough(@nr:timer_create@, 0, None, ctypes.byref(t))",
        "sure",
    ),
    _sys("call", "timer descriptor", "through(@nr:timerfd_create@, 1, 0)", "sure"),
    _sys(
        "call",
        "modify_ldt",
        "b = ctypes.create_string_buffer(65536)\nthrough(@nr:modify_ldt@, 0, b, 65536)",
        only="x86_64",
    ),
    _sys("call", "iopl", "through(@nr:iopl@, 3)", only="x86_64"),
    _sys("call", "kernel log", "b = ctypes.create_string_buffer(100)\nthrough(@nr:syslog@, 3, b, 100)"),
    _sys("call", "io priority", "through(@nr:ioprio_set@, 1, 0, 0x4007)", "sure"),
    _sys("call", "memory policy", "through(@nr:set_mempolicy@, 0, None, 0)"),
    _sys(
        "call",
        "splice",
        "r, w = os.pipe()\nos.write(w, b'x')\na, b = os.pipe()\nthrough(@nr:splice@, r, None, b, None, 1, 0)",
        "sure",
    ),
    _sys("call", "become root", "through(@nr:setuid@, 0)", "root"),
    _sys("call", "become another", "through(@nr:setresuid@, -1, -1, -1)", "sure"),
    _sys("call", "drop groups", "through(@nr:setgroups@, 0, None)", "root"),
    _sys(
        "call",
        "capabilities",
        "h = (ctypes.c_uint * 2)(0x20080522, 0)\nd = (ctypes.c_uint * 6)(2, 2)\nthrough(@nr:capset@, h, d)",
        "root",
    ),
    _sys("call", "keep capabilities", "through(@nr:prctl@, 8, 1, 0, 0, 0)", "sure"),
    _sys("call", "dumpable", "through(@nr:prctl@, 4, 1, 0, 0, 0)", "sure"),
    _sys("call", "clock", "b = (ctypes.c_char * 208)()\nthrough(@nr:adjtimex@, b)", "sure"),
    _sys("call", "barrier", "through(@nr:membarrier@, 0, 0, 0)"),
    _sys(
        "call",
        "advise another",
        "f = call(@nr:pidfd_open@, @VICTIM@, 0)\nthrough(@nr:process_madvise@, f, None, 0, 20, 0)",
        "depends",
    ),
    _sys(
        "call",
        "every other number",
        "import platform\nprobes = (335, 336) if platform.machine() == 'x86_64' else ()  # uretprobe and uprobe, which end a process at once.\nfor n in [*range(335, 424), *range(470, 1000)]:\n    if n in probes: continue\n    if libc.syscall(ctypes.c_long(n), 0, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1: print('THROUGH', n)",
        "never",
        ends=("pass",),
    ),
    Attack("call", "x32", PRELUDE + "through(0x40000000 | @nr:getpid@)", "depends", ("sandbox_denied",), only="x86_64"),
    Attack(
        "call",
        "32 bit",
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\nf = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nif f() > 0: print('THROUGH')",
        "depends",
        ("sandbox_denied", "runtime_error"),
        only="x86_64",
    ),
]

FLOODS = [
    Attack("flood", "stdout", "while True: print('x' * 1000)", "never", ends=("output_limit",)),
    Attack(
        "flood", "stderr", "import sys\nwhile True: print('x' * 1000, file=sys.stderr)", "never", ends=("output_limit",)
    ),
    Attack(
        "flood", "by descriptor", "import os\nwhile True: os.write(1, b'x' * 65536)", "never", ends=("output_limit",)
    ),
    Attack(
        "flood",
        "channel without a line",
        "import os\nwhile True: os.write(4, b'x' * 65536)",
        "never",
        ends=("output_limit",),
    ),
    Attack(
        "flood",
        "channel with many lines",
        "import os\nwhile True: os.write(4, b'{}\\n' * 1000)",
        "never",
        ends=("output_limit",),
    ),
    Attack(
        "flood",
        "channel with long lines",
        "import os\nwhile True: os.write(4, b'x' * 65536 + b'\\n')",
        "never",
        ends=("output_limit",),
    ),
    Attack("flood", "own lines", "import os\nos.write(4, b'{\"exit\": 0}\\n')", "never", ends=("protocol_error",)),
    Attack("flood", "no end of line", "import os\nos.write(1, b'x' * 500000)\nos._exit(0)", "never", ends=("pass",)),
]

ATTACKS = [
    attack
    for attack in [*READS, *WRITES, *PARENT, *SOCKETS, *SIGNALS, *PROCESSES, *RESOURCES, *CALLS, *FLOODS]
    if attack.only in ("", platform.machine())
]
