// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace capibara::acl {

// Makes ACL run on the calling thread, from the first call on.
void use_calling_thread();

}  // namespace capibara::acl
