// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All tests. The name of a test, with `-` for `_`, is the id of its row.

use crate::rig::Rig;
use crate::{
    claim, event, kernel, mem_type, op, range, reach_io, reach_tracked, ring, server, setup, slot,
    trap, unmark, vram,
};

/// One test, for one rig.
pub(crate) struct Case<R> {
    name: &'static str,
    pub(crate) run: fn(&R),
}

impl<R> Case<R> {
    /// The id of its row.
    pub(crate) fn id(&self) -> String {
        self.name.replace('_', "-")
    }
}

macro_rules! cases {
    ($($module:ident { $($name:ident,)* })*) => {
        vec![$($(Case { name: stringify!($name), run: $module::$name::<R> },)*)*]
    };
}

/// All tests.
pub(crate) fn cases<R: Rig>() -> Vec<Case<R>> {
    cases! {
        slot {
            slot_layout,
            slot_flags,
            slot_states,
            slot_type_pio,
            slot_type_copy,
            slot_type_pci_config,
            slot_pci_config_address,
            slot_type_timeoffset,
            slot_type_invalidate,
            slot_page_128,
            slot_vcpus_129,
            slot_page_hidden,
            slot_contents_before_ready,
            slot_data_after_state,
            slot_state_backward,
            slot_state_unknown,
            slot_busy_memory,
            slot_busy_port,
            slot_eport_memory,
            slot_eport_port,
            slot_none_port_read,
            slot_none_mmio_read,
            slot_none_write,
        }
        setup {
            setup_safe_order,
            setup_eport_before_enable,
            setup_scan_after_bind,
            setup_ring_scan_after_bind,
            setup_no_acquire_port,
            setup_no_acquire_mmio,
            setup_acquire_late_eport,
            setup_acquire_late_port,
            setup_acquire_late_memory,
            setup_acquire_late_mended,
            setup_claimed_never_enabled,
        }
        event {
            event_bind_pending,
            event_port_a_vcpu,
            event_read_masks,
            event_unmask_refires,
            event_notify_masked,
            event_several_ports,
            event_overflow,
            event_reset,
            event_bind_unknown,
        }
        ring {
            ring_layout,
            ring_size_codes,
            ring_eight_bytes,
            ring_contents_before_pointer,
            ring_atomic_rewinds,
            ring_lost_advance,
            ring_legacy_runs_on,
            ring_vga_write,
            ring_vga_read,
            ring_vga_rep,
            ring_vga_not_emulated,
            ring_vga_not_in_range,
            ring_not_elsewhere,
            ring_timeoffset,
            ring_timeoffset_broadcast,
            ring_full,
            ring_full_eight_bytes,
            ring_before_slot,
            ring_one_port,
        }
        op {
            op_01_create_server,
            op_02_server_info,
            op_03_map_range,
            op_04_unmap_range,
            op_05_server_state,
            op_06_destroy_server,
            op_08_pci_intx,
            op_09_isa_irq,
            op_10_pci_link,
            op_11_modified_memory,
            op_12_set_mem_type,
            op_13_inject_event,
            op_13_inject_event_busy,
            op_14_inject_msi,
            op_15_map_mem_type,
            op_16_remote_shutdown,
            op_18_pin_cacheattr,
            op_19_irq_level,
            op_20_nr_vcpus,
            op_pad,
            op_inner_pad,
            op_unknown,
            op_no_domain,
            op_dom0,
        }
        vram {
            op_07_track_dirty_vram,
            op_track_vram_one_range,
            type_track_vram,
        }
        kernel {
            kernel_dmop_buffer_size,
            kernel_balloon_old_frame,
        }
        server {
            server_bufioreq_3,
            server_create_pad,
            server_limit,
            server_info_unknown,
            server_state_unknown,
            server_destroy_unknown,
            server_info_no_gfns,
            server_frame_0,
            server_frame_1,
            server_frame_2,
            server_frame_again,
            server_acquire_unknown,
            server_acquire_no_ring,
            server_gfns_after_acquire,
            server_gfns_params_unset,
        }
        range {
            range_duplicate,
            range_overlap,
            range_backward,
            range_type_3,
            range_unmap_never,
            range_unmap_partly,
            range_limit,
            range_limit_per_type,
            range_limit_merge,
            range_limit_merge_below,
            range_limit_gap,
            range_limit_split,
            range_map_enabled,
            range_two_servers,
            range_two_servers_fallback,
            range_not_inside_port,
            range_not_inside_mmio,
            range_unclaimed,
        }
        claim {
            claim_read,
            claim_read_write,
            claim_unknown_flags,
            claim_other_type,
            claim_flags_before_id,
            claim_unknown_id,
            claim_disclaim_unknown_id,
            claim_second_server,
            claim_again,
            claim_disclaim_non_owner,
            claim_disclaim_twice,
            claim_opaque,
            claim_disabled,
            claim_log_dirty,
            claim_no_hap,
            claim_disclaim_no_hap,
        }
        mem_type {
            type_before_claim,
            type_owned_again,
            type_owned_to_ro,
            type_owned_to_mmio_dm,
            type_owned_to_rw,
            type_ro_to_owned,
            type_unpopulated,
            type_nr_0,
            type_wrap,
            type_3,
            type_9,
            type_beyond_max,
            type_partial,
            type_1024,
            type_log_dirty_busy,
            type_foreign_map,
            type_no_hap,
            unseen_migration,
        }
        trap {
            trap_disclaim_outstanding,
            trap_destroy_pages_stay,
            trap_destroy_claim_busy,
            trap_destroy_write_stuck,
            trap_disable_writes,
            trap_disable_ranges,
            trap_disclaim_in_flight,
            trap_retype_in_flight,
            trap_disclaim_in_flight_rep,
            trap_retype_in_flight_rep,
            trap_disable_in_flight,
            trap_destroy_in_flight_port,
            trap_destroy_in_flight_tracked,
            trap_owner_never_acquired,
            trap_mark_by_anyone,
            trap_kill_keeps,
            trap_kill_takeover,
            trap_other_emulator,
        }
        unmark {
            unmark_replay_store,
            unmark_replay_identical,
            unmark_replay_other_data,
            unmark_replay_next_io,
            unmark_replay_rep,
            unmark_trap_visible,
            unmark_grace_period,
            unmark_grace_keeps,
            unmark_naive,
            unmark_safe,
            unmark_bounded,
            unmark_paused,
        }
        reach_io {
            reach_mmio_sizes,
            reach_mmio_unaligned,
            reach_mmio_page_end,
            reach_sse_mmio,
            reach_lock_add_mmio,
            reach_rep_stos_mmio,
            reach_rep_stos_down,
            reach_rep_movs_to_mmio,
            reach_rep_movs_from_mmio,
            reach_rep_ins,
            reach_rep_outs,
            reach_rep_page_split,
            reach_mmio_to_mmio,
            reach_rep_not_inside,
            reach_ins_unclaimed_mmio,
            reach_ins_unclaimed_tracked,
            reach_ins_unclaimed_tracked_many,
            reach_atomic_straddle,
            reach_movs_straddle,
            reach_neighbour_ranges,
            reach_ecam,
        }
        reach_tracked {
            reach_tracked_read,
            reach_tracked_write,
            reach_sse_tracked,
            reach_tracked_lock_add,
            reach_tracked_or,
            reach_tracked_xchg,
            reach_tracked_cmpxchg,
            reach_tracked_cmpxchg8b,
            reach_tracked_cmpxchg_fail,
            reach_tracked_rep_stos,
            reach_tracked_rep_movs,
            reach_tracked_movs_overlap,
            reach_movs_into_tracked,
            reach_ins_into_tracked,
            reach_ins_one_into_tracked,
            reach_movs_from_tracked,
            reach_tracked_straddle,
            reach_range_over_tracked,
            reach_fetch_tracked,
            reach_foreign_write,
            reach_lost_update,
            reach_rmw_old_value,
        }
    }
}
