//! Perfect matching of the items of two lists.

/// Returns whether each of `count` items on one side can be matched with another item on the other side, where `agree`
/// says whether two indices may be matched. This is Kuhn's algorithm: an item whose partners are taken moves one of
/// them to another partner.
pub(super) fn has_perfect_matching(count: usize, agree: impl Fn(usize, usize) -> bool) -> bool {
    let mut partners = vec![None; count];
    (0..count).all(|item| find_partner(item, &mut vec![false; count], &mut partners, &agree))
}

/// Finds a partner for `item`, without those that are in `seen`. The recursion is as deep as there are items.
fn find_partner(
    item: usize,
    seen: &mut [bool],
    partners: &mut [Option<usize>],
    agree: &impl Fn(usize, usize) -> bool,
) -> bool {
    for other in 0..partners.len() {
        if seen[other] || !agree(item, other) {
            continue;
        }
        seen[other] = true;
        let is_free = match partners[other] {
            None => true,
            Some(holder) => find_partner(holder, seen, partners, agree),
        };
        if is_free {
            partners[other] = Some(item);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_gives_way_to_one_that_has_no_other_partner() {
        let agree = [[true, true, false], [true, false, false], [false, true, true]];
        assert!(has_perfect_matching(3, |item, other| agree[item][other]));
        assert!(!has_perfect_matching(2, |_, other| other == 0), "two for one");
        assert!(has_perfect_matching(0, |_, _| false));
    }

    #[test]
    fn it_finds_what_trying_all_orders_finds() {
        // All 65,536 ways in which four items can agree with four.
        let orders = orders(4);
        for bits in 0..1_u32 << 16 {
            let agree = |item: usize, other: usize| bits >> (item * 4 + other) & 1 == 1;
            let any = orders.iter().any(|order| order.iter().enumerate().all(|(item, other)| agree(item, *other)));
            assert_eq!(has_perfect_matching(4, agree), any, "{bits:016b}");
        }
    }

    fn orders(count: usize) -> Vec<Vec<usize>> {
        if count == 0 {
            return vec![Vec::new()];
        }
        let with = |shorter: Vec<usize>| (0..count).map(move |place| inserted(&shorter, place, count - 1));
        orders(count - 1).into_iter().flat_map(with).collect()
    }

    fn inserted(shorter: &[usize], place: usize, item: usize) -> Vec<usize> {
        let mut longer = shorter.to_vec();
        longer.insert(place, item);
        longer
    }
}
