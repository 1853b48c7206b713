"""Names and numbers of the system calls that the sandbox speaks of, for x86_64 and aarch64; a test compares them with headers.

Calls that are in no list here do not exist for a program: they return EPERM.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOWED = _names("""
    mmap mprotect munmap mremap madvise brk

    read write close fstat newfstatat lseek pread64 readv writev openat getdents64 faccessat faccessat2 readlinkat getcwd
    statx dup dup3 pipe2 open stat lstat access readlink pipe dup2

    ppoll pselect6 epoll_create1 epoll_ctl epoll_pwait eventfd2 poll select epoll_create epoll_wait eventfd
    recvfrom shutdown getsockname getpeername

    nanosleep clock_nanosleep getitimer setitimer gettimeofday clock_gettime clock_getres times time alarm pause

    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall

    getpid gettid getppid getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp uname
    getrusage sysinfo getrlimit getcpu getrandom

    sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
    futex set_tid_address set_robust_list rseq exit exit_group
""")
"""Allowed with any arguments, where the architecture has them: memory, open files (Landlock decides which can be opened,
and RLIMIT_FSIZE lets none grow), waiting, time, own signals, own identity, threads."""

CHECKED = _names("kill tgkill prlimit64 ioctl fcntl socketpair sendto getsockopt clone")
"""Allowed with the arguments that `seccomp.py` lets through."""

ABSENT = frozenset(("clone3", "openat2"))
"""Answered with ENOSYS, upon which glibc uses `clone` and `openat`, whose arguments a filter can read."""


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (pair.split("=") for pair in text.split())}


X86_64 = _numbers("""
    read=0 write=1 close=3 fstat=5 newfstatat=262 lseek=8 mmap=9 mprotect=10 munmap=11 mremap=25 madvise=28 brk=12
    rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130
    sigaltstack=131 pread64=17 readv=19 writev=20 pipe2=293 ppoll=271 pselect6=270 sched_yield=24 dup=32 dup3=292
    nanosleep=35 clock_nanosleep=230 getitimer=36 setitimer=38 getpid=39 gettid=186 getppid=110 getpgid=121 getsid=124
    getuid=102 geteuid=107 getgid=104 getegid=108 getresuid=118 getresgid=120 getgroups=115 uname=63 getcwd=79
    readlinkat=267 gettimeofday=96 getrusage=98 sysinfo=99 times=100 futex=202 sched_getaffinity=204 sched_getparam=143
    sched_getscheduler=145 sched_get_priority_max=146 sched_get_priority_min=147 set_tid_address=218
    set_robust_list=273 epoll_create1=291 epoll_ctl=233 epoll_pwait=281 eventfd2=290 clock_gettime=228 clock_getres=229
    exit=60 exit_group=231 openat=257 getdents64=217 faccessat=269 faccessat2=439 getcpu=309 getrandom=318 statx=332
    rseq=334 restart_syscall=219 recvfrom=45 shutdown=48 getsockname=51 getpeername=52 getsockopt=55
    getrlimit=97 kill=62 tgkill=234 prlimit64=302 ioctl=16 fcntl=72 socketpair=53 sendto=44 clone=56 clone3=435
    openat2=437 seccomp=317 capset=126 pivot_root=155 landlock_create_ruleset=444 landlock_add_rule=445
    landlock_restrict_self=446 close_range=436
    open=2 stat=4 lstat=6 access=21 readlink=89 pipe=22 poll=7 select=23 dup2=33 epoll_create=213 epoll_wait=232
    eventfd=284 time=201 alarm=37 pause=34 getpgrp=111
""")
AARCH64 = _numbers("""
    read=63 write=64 close=57 fstat=80 newfstatat=79 lseek=62 mmap=222 mprotect=226 munmap=215 mremap=216 madvise=233
    brk=214 rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139 rt_sigpending=136 rt_sigtimedwait=137
    rt_sigsuspend=133 sigaltstack=132 pread64=67 readv=65 writev=66 pipe2=59 ppoll=73 pselect6=72 sched_yield=124
    dup=23 dup3=24 nanosleep=101 clock_nanosleep=115 getitimer=102 setitimer=103 getpid=172 gettid=178 getppid=173
    getpgid=155 getsid=156 getuid=174 geteuid=175 getgid=176 getegid=177 getresuid=148 getresgid=150 getgroups=158
    uname=160 getcwd=17 readlinkat=78 gettimeofday=169 getrusage=165 sysinfo=179 times=153 futex=98
    sched_getaffinity=123 sched_getparam=121 sched_getscheduler=120 sched_get_priority_max=125
    sched_get_priority_min=126 set_tid_address=96 set_robust_list=99 epoll_create1=20 epoll_ctl=21 epoll_pwait=22
    eventfd2=19 clock_gettime=113 clock_getres=114 exit=93 exit_group=94 openat=56 getdents64=61 faccessat=48
    faccessat2=439 getcpu=168 getrandom=278 statx=291 rseq=293 restart_syscall=128 recvfrom=207 shutdown=210
    getsockname=204 getpeername=205 getsockopt=209 getrlimit=163 kill=129 tgkill=131 prlimit64=261 ioctl=29 fcntl=25
    socketpair=199 sendto=206 clone=220 clone3=435 openat2=437 seccomp=277 capset=91 pivot_root=41
    landlock_create_ruleset=444 landlock_add_rule=445 landlock_restrict_self=446
""")
"""aarch64 has no `open`, `stat` and other calls that newer ones replace."""

TABLES = {"x86_64": X86_64, "aarch64": AARCH64}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What seccomp calls the architecture (linux/audit.h)."""
