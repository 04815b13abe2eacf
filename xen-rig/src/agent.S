// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The agent in a test domain: 64-bit mode, identity mapping of 4 GiB, privilege level 0. r15 is the vCPU's mailbox (see
// agent.rs for its layout). A vCPU sleeps with interrupts on until a program is posted, and executes with interrupts off.
// r12: the current instruction's record, r13: its number; no instruction touches them.

    .section .rodata.xen_rig_agent, "a"
    .balign 4096
    .global xen_rig_agent
    .global xen_rig_agent_fault
    .global xen_rig_agent_irq
    .global xen_rig_agent_hlt
    .global xen_rig_agent_end
    .hidden xen_rig_agent
    .hidden xen_rig_agent_fault
    .hidden xen_rig_agent_irq
    .hidden xen_rig_agent_hlt
    .hidden xen_rig_agent_end
xen_rig_agent:
    mov edi, 0xfee000f0                 // the local APIC takes interrupts
    mov dword ptr [rdi], 0x1ff
10: cli                                 // idle
    lea rsp, [r15 + 0x200]
    mov qword ptr [r15 + 0x20], 0
    mov rax, [r15]
    cmp rax, [r15 + 8]
    jne 11f
    sti
xen_rig_agent_hlt:
    hlt
    jmp 10b

11: xor r13d, r13d                      // a program
    mov [r15 + 0x28], r13
    lea r12, [r15 + 0x200]
12: cmp r13, [r15 + 0x10]               // the next instruction
    jae 19f
    cmp qword ptr [r15 + 0x28], 0
    je 16f
    rdtsc                               // repeated ones are timed
    shl rdx, 32
    or rax, rdx
    mov [r15 + 0x38], rax
16: mov eax, [r12]
    lea rbx, [rip + 90f]
    movsxd rax, dword ptr [rbx + rax * 4]
    add rax, rbx
    mov qword ptr [r15 + 0x20], 1
    mov r8, [r12 + 8]
    mov r9, [r12 + 16]
    mov r10, [r12 + 24]
    jmp rax
13: mov ebx, 1                          // it is done
    jmp 15f
14: mov [r12 + 40], rax                 // it is done and gave a value
    mov ebx, 2
15: mov [r12 + 48], rbx
    mov qword ptr [r15 + 0x20], 0
    cld
    cmp qword ptr [r15 + 0x28], 0
    je 17f
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, [r15 + 0x38]
    add [r12 - 24], rax                 // the value of `repeat`, the record before
    dec qword ptr [r15 + 0x28]
    je 17f
    mov rcx, [r15 + 0x30]
91: sub rcx, 1
    jae 91b
    jmp 12b
17: add r12, 64
    inc r13
    mov [r15 + 0x18], r13
    jmp 12b
19: mov rax, [r15]                      // all are through
    mov [r15 + 8], rax
    jmp 10b

    .balign 16
xen_rig_agent_fault:                    // vectors 0 to 31, with or without an error code
    lea rsp, [r15 + 0x200]
    cmp qword ptr [r15 + 0x20], 0
    je 10b
    mov ebx, 3
    jmp 15b

    .balign 16
xen_rig_agent_irq:                      // the others: wake-ups
    push rdi
    mov edi, 0xfee000b0
    mov dword ptr [rdi], 0
    // `sti` holds interrupts back for one instruction, so none comes between it and `hlt`. QEMU notes that when the guest is left there,
    // and does not look at it when the guest goes on (`helper_vmrun`): a program that was posted meanwhile would be slept through.
    lea rdi, [rip + xen_rig_agent_hlt]
    cmp [rsp + 8], rdi
    jne 93f
    inc qword ptr [rsp + 8]             // past the `hlt`, which has one byte
93: pop rdi
    iretq

// A row for each kind of instruction, a column for each width.
    .balign 16
90:
    .irp target, 20f, 21f, 22f, 18f, 23f, 24f, 25f, 18f
    .long \target - 90b
    .endr
    .irp target, 26f, 27f, 28f, 29f, 30f, 31f, 32f, 33f
    .long \target - 90b
    .endr
    .irp target, 34f, 34f, 34f, 34f
    .long \target - 90b
    .endr
    .irp target, 35f, 36f, 37f, 38f, 39f, 40f, 41f, 42f
    .long \target - 90b
    .endr
    .irp target, 43f, 44f, 45f, 46f
    .long \target - 90b
    .endr
    .irp target, 47f, 48f, 49f, 18f, 50f, 51f, 52f, 18f
    .long \target - 90b
    .endr
    .irp target, 53f, 54f, 55f, 56f, 57f, 58f, 59f, 60f
    .long \target - 90b
    .endr
    .irp target, 61f, 62f, 63f, 64f, 65f, 66f, 67f, 68f
    .long \target - 90b
    .endr
    .irp target, 69f, 69f, 69f, 69f
    .long \target - 90b
    .endr
    .irp target, 70f, 71f, 72f, 18f, 73f, 74f, 75f, 18f
    .long \target - 90b
    .endr
    .irp target, 76f, 76f, 76f, 76f, 77f, 77f, 77f, 77f
    .long \target - 90b
    .endr
    .irp target, 78f, 78f, 78f, 78f, 79f, 79f, 79f, 79f, 80f, 80f, 80f, 80f
    .long \target - 90b
    .endr
    .irp target, 81f, 82f, 83f, 84f
    .long \target - 90b
    .endr

18: ud2

20: mov edx, r8d                        // in
    xor eax, eax
    in al, dx
    jmp 14b
21: mov edx, r8d
    xor eax, eax
    in ax, dx
    jmp 14b
22: mov edx, r8d
    in eax, dx
    jmp 14b
23: mov edx, r8d                        // out
    mov eax, r9d
    out dx, al
    jmp 13b
24: mov edx, r8d
    mov eax, r9d
    out dx, ax
    jmp 13b
25: mov edx, r8d
    mov eax, r9d
    out dx, eax
    jmp 13b

26: movzx eax, byte ptr [r8]            // load
    jmp 14b
27: movzx eax, word ptr [r8]
    jmp 14b
28: mov eax, [r8]
    jmp 14b
29: mov rax, [r8]
    jmp 14b
30: mov [r8], r9b                       // store
    jmp 13b
31: mov [r8], r9w
    jmp 13b
32: mov [r8], r9d
    jmp 13b
33: mov [r8], r9
    jmp 13b
34: movups xmm0, [r12 + 16]             // store of 16 bytes
    movups [r8], xmm0
    jmp 13b

35: mov rdi, r8                         // rep stos
    mov rax, r9
    mov rcx, r10
    rep stosb
    jmp 13b
36: mov rdi, r8
    mov rax, r9
    mov rcx, r10
    rep stosw
    jmp 13b
37: mov rdi, r8
    mov rax, r9
    mov rcx, r10
    rep stosd
    jmp 13b
38: mov rdi, r8
    mov rax, r9
    mov rcx, r10
    rep stosq
    jmp 13b
39: std                                 // rep stos, downward
    jmp 35b
40: std
    jmp 36b
41: std
    jmp 37b
42: std
    jmp 38b

43: mov rsi, r8                         // rep movs
    mov rdi, r9
    mov rcx, r10
    rep movsb
    jmp 13b
44: mov rsi, r8
    mov rdi, r9
    mov rcx, r10
    rep movsw
    jmp 13b
45: mov rsi, r8
    mov rdi, r9
    mov rcx, r10
    rep movsd
    jmp 13b
46: mov rsi, r8
    mov rdi, r9
    mov rcx, r10
    rep movsq
    jmp 13b
81: std                                 // rep movs, downward
    jmp 43b
82: std
    jmp 44b
83: std
    jmp 45b
84: std
    jmp 46b

47: mov edx, r8d                        // rep ins
    mov rdi, r9
    mov rcx, r10
    rep insb
    jmp 13b
48: mov edx, r8d
    mov rdi, r9
    mov rcx, r10
    rep insw
    jmp 13b
49: mov edx, r8d
    mov rdi, r9
    mov rcx, r10
    rep insd
    jmp 13b
50: mov edx, r8d                        // rep outs
    mov rsi, r9
    mov rcx, r10
    rep outsb
    jmp 13b
51: mov edx, r8d
    mov rsi, r9
    mov rcx, r10
    rep outsw
    jmp 13b
52: mov edx, r8d
    mov rsi, r9
    mov rcx, r10
    rep outsd
    jmp 13b

53: lock add byte ptr [r8], r9b         // lock add
    jmp 13b
54: lock add word ptr [r8], r9w
    jmp 13b
55: lock add dword ptr [r8], r9d
    jmp 13b
56: lock add qword ptr [r8], r9
    jmp 13b
57: or byte ptr [r8], r9b               // or
    jmp 13b
58: or word ptr [r8], r9w
    jmp 13b
59: or dword ptr [r8], r9d
    jmp 13b
60: or qword ptr [r8], r9
    jmp 13b
61: movzx eax, r9b                      // xchg
    xchg byte ptr [r8], al
    jmp 14b
62: movzx eax, r9w
    xchg word ptr [r8], ax
    jmp 14b
63: mov eax, r9d
    xchg dword ptr [r8], eax
    jmp 14b
64: mov rax, r9
    xchg qword ptr [r8], rax
    jmp 14b
65: movzx eax, r9b                      // lock cmpxchg
    lock cmpxchg byte ptr [r8], r10b
    jmp 14b
66: movzx eax, r9w
    lock cmpxchg word ptr [r8], r10w
    jmp 14b
67: mov eax, r9d
    lock cmpxchg dword ptr [r8], r10d
    jmp 14b
68: mov eax, r9d                        // lock cmpxchg8b
    mov rdx, r9
    shr rdx, 32
    mov ebx, r10d
    mov rcx, r10
    shr rcx, 32
    lock cmpxchg8b qword ptr [r8]
    shl rdx, 32
    mov eax, eax
    or rax, rdx
    jmp 14b

69: call r8                             // fetch
    jmp 13b

70: mov edx, 0xcf8                      // PCI configuration read
    mov eax, r8d
    out dx, eax
    mov r8, r9
    jmp 20b
71: mov edx, 0xcf8
    mov eax, r8d
    out dx, eax
    mov r8, r9
    jmp 21b
72: mov edx, 0xcf8
    mov eax, r8d
    out dx, eax
    mov r8, r9
    jmp 22b
73: mov edx, 0xcf8                      // PCI configuration write
    mov eax, r8d
    out dx, eax
    mov r8, r9
    mov r9, r10
    jmp 23b
74: mov edx, 0xcf8
    mov eax, r8d
    out dx, eax
    mov r8, r9
    mov r9, r10
    jmp 24b
75: mov edx, 0xcf8
    mov eax, r8d
    out dx, eax
    mov r8, r9
    mov r9, r10
    jmp 25b

76: mov al, 4                           // real-time clock: the hours, to 3 or to 4
    out 0x70, al
    in al, 0x71
    mov ecx, 4
    cmp al, 3
    mov eax, 3
    cmove eax, ecx
    mov ecx, eax
    mov al, 4
    out 0x70, al
    mov eax, ecx
    out 0x71, al
    jmp 13b

77: mov eax, 12                         // memory_op(XENMEM_decrease_reservation) of one frame
    mov [r15 + 0x80], r8
    lea rcx, [r15 + 0x80]
    mov [r15 + 0x40], rcx               // extent_start
    mov qword ptr [r15 + 0x48], 1       // nr_extents
    mov qword ptr [r15 + 0x50], 0       // extent_order, mem_flags
    mov qword ptr [r15 + 0x58], 0x7ff0  // domid: self
    mov edi, 1
    lea rsi, [r15 + 0x40]
    vmmcall
    jmp 13b

78: cmp [r8], r9d                       // await; a `pause` could have Xen schedule another vCPU
    je 13b
    jmp 78b

79: mov [r15 + 0x28], r8                // repeat
    mov [r15 + 0x30], r9
    mov qword ptr [r12 + 40], 0
    mov qword ptr [r12 + 48], 2
    mov qword ptr [r15 + 0x20], 0
    jmp 17b

80: rdtsc                               // time stamp
    shl rdx, 32
    or rax, rdx
    jmp 14b
xen_rig_agent_end:
    .previous
